"""How much memory request bodies may take together.

A body stays in memory until its request is answered, so a few dozen uploads of the largest size would be
gigabytes. Law: small bodies are always let in. What an upload may crowd out is another upload, never a query.
"""

from typing import Any, cast

from litestar.types import ASGIApp, Receive, Scope, Send

from app.errors import OverloadedError

LARGEST_BODIES = 4
"""Bodies of the largest size that there is room for at once."""
FREE_BYTES = 64 * 1024
"""Of each body, not counted: as much as the server reads ahead of a request anyway (uvicorn 0.54)."""


class BodyBudget:
    """Owns the count of bytes that large bodies hold at this moment. Used as a middleware of the routes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0

    def __repr__(self) -> str:
        """How full it is."""
        return f"<BodyBudget {self._held_bytes} of {self._max_bytes} bytes>"

    def around(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application: what it reads counts until it has answered.

        ``receive`` raises ``OverloadedError`` inside it where a body finds no room.
        """

        async def budgeted(scope: Scope, receive: Receive, send: Send) -> None:
            num_received = num_held = 0

            async def receive_within_budget() -> Any:
                nonlocal num_received, num_held
                message = cast("dict[str, Any]", await receive())
                if message["type"] == "http.request":
                    num_received += len(message["body"])
                    num_new = max(num_received - FREE_BYTES, 0) - num_held
                    self._take(num_new)
                    num_held += num_new
                return message

            try:
                await app(scope, receive_within_budget, send)
            finally:
                self._held_bytes -= num_held

        return budgeted

    def _take(self, num_bytes: int) -> None:
        if num_bytes and self._held_bytes + num_bytes > self._max_bytes:
            raise OverloadedError(num_bytes=self._held_bytes, max_bytes=self._max_bytes)
        self._held_bytes += num_bytes

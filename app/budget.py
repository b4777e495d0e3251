"""How much memory request bodies may take together.

A body stays in memory until its request is answered, at the least as the request that it was parsed into, so
a few dozen uploads of the largest size would be gigabytes. Laws: small bodies are always let in, so what an
upload may crowd out is another upload, never a query. An upload is promised its whole size before more of it
is read, because two that each had half would wait for each other; until then nothing is read of it, and its
client sends no further.

What is counted is the body as it came. The files of its images, once they are taken out of it, and their
pixels are counted apart, under ``max_held_image_bytes``.
"""

import asyncio
from typing import Any, cast

from litestar.types import ASGIApp, Receive, Scope, Send

from app.errors import OverloadedError
from app.room import Room

FREE_BYTES = 64 * 1024
"""Of each body, not counted: as much as the server reads ahead of a request anyway (uvicorn 0.54)."""


class BodyBudget:
    """Owns the room for large bodies. Used as a middleware of the routes."""

    def __init__(self, max_bytes: int, *, max_body_bytes: int, max_wait_s: float) -> None:
        """Start with all of the room empty.

        Args:
            max_bytes: Of all large bodies together. One that is larger still is let in alone.
            max_body_bytes: No body is larger. A body that does not say its size may become so large.
            max_wait_s: A body that has found no room by then is refused.
        """
        self._room = Room(max_bytes)
        self._max_body_bytes = max_body_bytes
        self._max_wait_s = max_wait_s

    @property
    def held_bytes(self) -> int:
        """Bytes of large bodies that are held, or were promised."""
        return self._room.held_bytes

    @property
    def max_bytes(self) -> int:
        """Bytes that there are for large bodies."""
        return self._room.max_bytes

    @property
    def num_waiting(self) -> int:
        """Uploads that wait for room."""
        return self._room.num_waiting

    def __repr__(self) -> str:
        """How full it is."""
        return f"<BodyBudget {self._room}>"

    def around(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application: what it reads counts until it has answered.

        ``receive`` waits inside it for room, and raises ``OverloadedError`` where there is none in time.
        """

        async def budgeted(scope: Scope, receive: Receive, send: Send) -> None:
            num_received = num_held = 0

            async def receive_within_budget() -> Any:
                nonlocal num_received, num_held
                message = cast("dict[str, Any]", await receive())
                if message["type"] == "http.request":
                    num_received += len(message["body"])
                    num_counted = max(num_received - FREE_BYTES, 0)
                    is_whole = not message.get("more_body", False)
                    if num_counted and not num_held:
                        num_wanted = num_counted if is_whole else self._num_counted(scope)
                        await self._take(num_wanted)
                        num_held = num_wanted
                    elif is_whole:
                        # A body that did not say its size was promised the largest.
                        self._room.give(num_held - num_counted)
                        num_held = num_counted
                return message

            try:
                await app(scope, receive_within_budget, send)
            finally:
                # The server keeps the scope until the connection's next request, and Litestar (2.25) keeps a
                # body that was refused in its state.
                scope["state"].clear()
                self._room.give(num_held)

        return budgeted

    def _num_counted(self, scope: Scope) -> int:
        """Bytes of the body that will count, or may."""
        headers = cast("list[tuple[bytes, bytes]]", scope["headers"])
        declared = next((value for name, value in headers if name == b"content-length"), None)
        num_bytes = self._max_body_bytes if declared is None else min(int(declared), self._max_body_bytes)
        return max(num_bytes - FREE_BYTES, 0)

    async def _take(self, num_bytes: int) -> None:
        try:
            async with asyncio.timeout(self._max_wait_s):
                await self._room.take(num_bytes)
        except TimeoutError:
            raise OverloadedError(
                num_bytes=self._room.held_bytes, max_bytes=self._room.max_bytes, waited_s=self._max_wait_s
            ) from None

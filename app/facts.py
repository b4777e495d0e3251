"""What becomes known of a request on its way: for its line in the log, and for its trace.

Law: counts, times and names that we gave. Nothing here holds an input, a key or an address.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from batching import Lane

FACTS = "laneway.facts"
"""Key in the ASGI scope, for whoever tells them (``app.observe``)."""
QUIET_ROUTES = frozenset({
    "/health", "/health/live", "/health/ready", "/v1/health/live", "/v1/health/ready",
    "/metrics", "/v1/metrics", "/live",
})  # fmt: skip
"""Asked for every few seconds by machines: counted like any other, but a line and a trace each would bury the
rest."""
# RFC 9110, 9.3, and PATCH (RFC 5789). The parser knows some thirty more, from WebDAV to RTSP.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})


def known_method(method: str) -> str:
    """A method that there is; clients can make up others."""
    return method if method in _METHODS else "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What it took to embed a request's inputs. Moments are ``time.monotonic``'s."""

    num_tokens: int
    num_image_tokens: int
    """How many of the tokens stand for images."""
    dimension: int
    """Of the vectors, before they are cut."""
    prepare_s: float
    """From inputs to features."""
    queue_s: float
    """Longest wait of an input."""
    worker_wait_s: float
    """Longest time that one of its passes was with its worker beyond its device time."""
    device_s: float
    """Device time of the passes that the inputs ran in."""
    ended_s: float
    """When the last row was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """A request to embed something, once it was understood."""

    lane: Lane
    model: str
    """The name that the model is served under."""
    num_items: int
    encoding_format: str
    began_s: float
    """When its inputs were handed on, on ``time.monotonic``'s clock."""
    computed: Computed | None = None
    """``None``: it has no vectors, or not yet."""


def facts_of(scope: Mapping[str, Any]) -> RequestFacts | None:
    """The facts of a request; ``None`` where nothing was to be embedded, or it was not understood."""
    return scope.get(FACTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a request's time, on ``time.monotonic``'s clock."""

    name: str
    began_s: float
    ended_s: float


stages_var: ContextVar[list[Stage] | None] = ContextVar("stages", default=None)
"""Where the current request's stages are noted; ``None``: nobody wants to know."""


def note_stage(name: str, began_s: float, ended_s: float) -> None:
    """Note a stage that nothing else tells the times of, if somebody wants to know."""
    stages = stages_var.get()
    if stages is not None:
        stages.append(Stage(name=name, began_s=began_s, ended_s=ended_s))

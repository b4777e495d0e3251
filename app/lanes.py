"""Which lane a request waits in, and until when it is worth running.

Law: nothing decided here changes a vector. So it may look at everything, the batch shape included, from which
no prompt is ever inferred.
"""

import math
from collections.abc import Mapping, Set

from app.errors import InvalidRequestError, quoted
from app.prompts import Side
from batching import Lane

_LANE_NAMES = frozenset(map(str, Lane))

LOWEST_BATCH_PRIORITY = 10
"""Priorities from here on are the batch lane."""
MAX_TIMEOUT_S = 86_400.0
"""The longest that is waited for: a day, as in the settings. Timers refuse the numbers JSON can hold."""


def choose_lane(
    *, priority: int | str | None, header_priority: str | None, sides: Set[Side], num_inputs: int
) -> Lane:
    """Choose by what was said first, then by what kind of text it is, then by shape.

    Args:
        priority: The body's ``priority``.
        header_priority: The ``X-Priority`` header.
        sides: What the request called its inputs, in any way; empty if it did not say.
        num_inputs: Vectors that are asked for.

    Raises:
        InvalidRequestError: A priority is neither a whole number nor a lane's name.
    """
    return (
        _lane_of_priority(priority, param="priority")
        or _lane_of_priority(header_priority, param="X-Priority")
        or _lane_of_sides(sides)
        or (Lane.QUERY if num_inputs == 1 else Lane.DOCUMENT)
    )


def _lane_of_priority(priority: int | str | None, *, param: str) -> Lane | None:
    """Read a priority: lower is sooner, as Cohere and vLLM have it; 0 is their default and says nothing."""
    if priority is None:
        return None
    if isinstance(priority, str):
        name = priority.strip().lower()
        if name in _LANE_NAMES:
            return Lane(name)
        if not (name.removeprefix("-").isdecimal() and name.isascii() and len(name) <= 20):
            lanes = ", ".join(Lane)
            raise InvalidRequestError(
                f"{quoted(priority)} is not a priority: send a whole number or one of {lanes}.", param=param
            )
        priority = int(name)
    if priority == 0:
        return None
    if priority < 0:
        return Lane.QUERY
    return Lane.DOCUMENT if priority < LOWEST_BATCH_PRIORITY else Lane.BATCH


def _lane_of_sides(sides: Set[Side]) -> Lane | None:
    if Side.DOCUMENT in sides:
        return Lane.DOCUMENT
    return Lane.QUERY if Side.QUERY in sides else None


def choose_timeout_s(*, timeout_ms: float | None, headers: Mapping[str, str], default_s: float) -> float:
    """How long the answer is worth waiting for: as the body says, or as long as the client's SDK will wait.

    OpenAI's SDKs send their read timeout in seconds as ``x-stainless-read-timeout``. It says when nobody will
    be listening any more; a value that makes no sense is no statement at all.

    Raises:
        InvalidRequestError: ``timeout_ms`` is not positive.
    """
    if timeout_ms is not None:
        if not timeout_ms > 0:
            raise InvalidRequestError(
                f"'timeout_ms' must be greater than 0, not {timeout_ms}.", param="timeout_ms"
            )
        return min(timeout_ms, MAX_TIMEOUT_S * 1000) / 1000
    try:
        read_timeout_s = float(headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return default_s
    if not (math.isfinite(read_timeout_s) and read_timeout_s > 0):
        return default_s
    return min(read_timeout_s, MAX_TIMEOUT_S)

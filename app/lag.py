"""How late the event loop comes to what is due: what every request waits for code that does not wait.

A timer rings twenty times a second, and what counts is how much later than it should. A loop that stood still
for longer than that missed several rings, each of which would have been late by its own part of the time;
they are counted, too, or the worst stalls would count least.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from time import monotonic

INTERVAL_S = 0.05
MAX_LAG_S = 60.0
"""A machine that was suspended for a night is not counted a million times."""


class LagWatch:
    """Owns the timer."""

    def __init__(
        self,
        observe: Callable[[float], object],
        *,
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Wind it up for the first time.

        Args:
            observe: Told each ring's lateness, in seconds.
            call_later: The loop's.
            clock: Monotonic seconds. Not the loop's own: uvloop (0.22) reads its clock once a turn.
        """
        self._observe = observe
        self._call_later = call_later
        self._clock = clock
        self._wind()

    def stop(self) -> None:
        """Ring no more."""
        self._timer.cancel()

    def _wind(self) -> None:
        self._due_s = self._clock() + INTERVAL_S
        self._timer = self._call_later(INTERVAL_S, self._ring)

    def _ring(self) -> None:
        # uvloop's timers are of whole milliseconds, and may ring a little early.
        lag_s = min(max(0.0, self._clock() - self._due_s), MAX_LAG_S)
        self._observe(lag_s)
        while lag_s > INTERVAL_S:
            lag_s -= INTERVAL_S
            self._observe(lag_s)
        self._wind()


@asynccontextmanager
async def watching_lag(observe: Callable[[float], object]) -> AsyncGenerator[None]:
    """Tell how late the running loop is, until the block ends."""
    watch = LagWatch(observe, call_later=asyncio.get_running_loop().call_later)
    try:
        yield
    finally:
        watch.stop()

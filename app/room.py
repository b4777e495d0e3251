"""A bound on memory that requests take a part of before they fill it, and wait for where there is none.

Laws: what waits, waits in the order it came, so that a large share is not passed by small ones for ever;
whatever ends a wait gives back what it was given; a room within another is taken first, so nobody waits in a
circle.
"""

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Turn:
    num_bytes: int
    has_come: asyncio.Future[None]


class Room:
    """Owns the count of bytes that requests in flight hold or are promised."""

    def __init__(self, max_bytes: int, *, within: "Room | None" = None) -> None:
        """Begin empty.

        Args:
            max_bytes: Bytes that there are.
            within: A larger room of which this one is a part: what is taken here is taken there, too.
        """
        self._max_bytes = max_bytes
        self._within = within
        self._held_bytes = 0
        self._waiting: deque[_Turn] = deque()

    def __repr__(self) -> str:
        """How full it is."""
        return f"<Room {self._held_bytes} of {self._max_bytes} bytes, {len(self._waiting)} waiting>"

    @property
    def held_bytes(self) -> int:
        """Bytes that are promised or held at this moment."""
        return self._held_bytes

    @property
    def num_waiting(self) -> int:
        """How many wait for room."""
        return sum(not turn.has_come.cancelled() for turn in self._waiting)

    @property
    def max_bytes(self) -> int:
        """Bytes that there are."""
        return self._max_bytes

    async def take(self, num_bytes: int) -> None:
        """Return when there is room, and it has been taken. More than all of it is given an empty room.

        Cancelled, it has taken nothing.
        """
        await self._take_here(num_bytes)
        if self._within is not None:
            try:
                await self._within.take(num_bytes)
            except BaseException:
                self._give_here(num_bytes)
                raise

    def give(self, num_bytes: int) -> None:
        """Give room back."""
        self._give_here(num_bytes)
        if self._within is not None:
            self._within.give(num_bytes)

    async def _take_here(self, num_bytes: int) -> None:
        turn = _Turn(num_bytes=num_bytes, has_come=asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._admit()
        try:
            await turn.has_come
        except asyncio.CancelledError:
            if turn.has_come.cancelled():
                self._admit()
            else:  # room was made and the caller cancelled in the same moment
                self._give_here(num_bytes)
            raise

    def _give_here(self, num_bytes: int) -> None:
        self._held_bytes -= num_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            turn = self._waiting[0]
            if turn.has_come.cancelled():
                self._waiting.popleft()
                continue
            if self._held_bytes and self._held_bytes + turn.num_bytes > self._max_bytes:
                return
            self._waiting.popleft()
            self._held_bytes += turn.num_bytes
            turn.has_come.set_result(None)

"""The room in a pass, and who of a line goes into it."""

from collections.abc import Iterable
from itertools import islice

from batching.cost import CostModel
from batching.limits import Limits
from batching.types import Entry

TINY_S = 1e-9
"""Less than this is rounding."""
_LOOK_PAST = 64
"""Entries looked at behind the first one that does not fit. Bounds the work of composing a pass."""


class Room:
    """What still fits into a pass."""

    __slots__ = ("_cost", "_is_empty", "_num_entries", "_num_tokens", "work_s")

    def __init__(self, cost: CostModel, limits: Limits, pass_s: float) -> None:
        self._cost = cost
        self._is_empty = True
        self._num_entries = limits.max_pass_entries
        self._num_tokens = limits.max_pass_tokens
        self.work_s = cost.room_s(pass_s)

    @property
    def is_empty(self) -> bool:
        """Nothing has been taken yet."""
        return self._is_empty

    def fits(self, entry: Entry, *, keep_s: float = 0.0) -> bool:
        """Whether an entry fits, and leaves so many seconds of work free."""
        return (
            self._num_entries > 0
            and entry.num_tokens <= self._num_tokens
            and self._cost.predict_work_s(entry.shape) <= self.work_s - keep_s + TINY_S
        )

    def take(self, entry: Entry) -> None:
        """Fill the room with an entry, whether it fits or not."""
        self._is_empty = False
        self._num_entries -= 1
        self._num_tokens -= entry.num_tokens
        self.work_s -= self._cost.predict_work_s(entry.shape)


def in_order(queue: Iterable[Entry], room: Room, keep_s: float) -> list[Entry]:
    """The first ones in line, as many as fit. Nobody is passed over."""
    chosen: list[Entry] = []
    for entry in queue:
        if not room.fits(entry, keep_s=keep_s):
            break
        room.take(entry)
        chosen.append(entry)
    return chosen


def best_fit(queue: Iterable[Entry], room: Room, keep_s: float) -> list[Entry]:
    """The first ones in line, as many as fit, then from those just behind whatever fills the rest best."""
    chosen = in_order(queue, room, keep_s)
    behind = list(islice(queue, len(chosen), len(chosen) + _LOOK_PAST))
    # Largest first; of equal ones the older, since sorting is stable.
    for entry in sorted(behind, key=lambda entry: -entry.num_tokens):
        if room.fits(entry, keep_s=keep_s):
            room.take(entry)
            chosen.append(entry)
    return chosen

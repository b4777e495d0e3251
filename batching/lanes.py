"""One lane's queue: who waits, in which order, and how much that is.

An entry that nobody waits for any more leaves the counts at once, so that its place in the lane is
free again, and leaves the deque when it is met. Nothing is decided here; scheduler.py chooses.
"""

from bisect import insort_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from math import inf

from batching.types import Entry

_SLACK = 64
"""Dead entries a deque may hold beyond as many as it holds living ones, before it is swept."""


class LaneQueue:
    """Waiting entries in the order of arrival, or of their deadlines. Owns the lane's counts.

    In front of them stand *groups*: what is left of a failed pass, to be run again apart from all
    others, or the culprit among them could never be found.

    ``len()`` is the number of waiting entries, those in groups included; iterating gives the living ones
    outside of groups, first in line first.
    """

    def __init__(self, *, is_by_deadline: bool = False) -> None:
        self._is_by_deadline = is_by_deadline
        self._line: deque[Entry] = deque()
        self._groups: deque[tuple[Entry, ...]] = deque()
        # Membership is what "waiting" means; the deques may hold entries that have left.
        self._waiting: set[Entry] = set()
        self._num_tokens = 0
        self._num_image_tokens = 0
        self._num_overtakings = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._waiting

    def __iter__(self) -> Iterator[Entry]:
        while self._line and self._line[0] not in self._waiting:
            self._line.popleft()
        return (entry for entry in self._line if entry in self._waiting)

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting entries."""
        return self._num_tokens

    @property
    def num_image_tokens(self) -> int:
        """How many of them stand for images."""
        return self._num_image_tokens

    @property
    def num_overtakings(self) -> int:
        """How often the first in line was left standing while others behind it were taken."""
        return self._num_overtakings

    @property
    def group(self) -> tuple[Entry, ...]:
        """The living entries of the first group; empty if no group waits."""
        while self._groups:
            if living := tuple(entry for entry in self._groups[0] if entry in self._waiting):
                return living
            self._groups.popleft()
        return ()

    def oldest_arrival_s(self) -> float | None:
        """When the entry that has waited longest arrived; ``None`` if nothing waits."""
        # In a line by arrival the first one is the oldest.
        line = self if self._is_by_deadline else islice(self, 1)
        grouped = (entry for group in self._groups for entry in group if entry in self._waiting)
        return min((entry.arrival_s for entry in chain(grouped, line)), default=None)

    def append(self, entry: Entry) -> None:
        """Let an entry wait at the end, or where its deadline puts it."""
        if self._is_by_deadline:
            insort_right(self._line, entry, key=_deadline_s)
        else:
            self._line.append(entry)
        self._count(entry)

    def push_group(self, entries: Sequence[Entry]) -> None:
        """Let entries that must run apart wait before everything else."""
        self._groups.appendleft(tuple(entries))
        for entry in entries:
            self._count(entry)

    def discard(self, entry: Entry) -> bool:
        """Forget a waiting entry; false if it does not wait here."""
        if entry not in self._waiting:
            return False
        self._uncount(entry)
        if len(self._line) > 2 * len(self._waiting) + _SLACK:
            # Or callers who come and go behind one entry that stays would fill the memory.
            self._line = deque(entry for entry in self._line if entry in self._waiting)
        return True

    def take(self, chosen: Collection[Entry]) -> None:
        """Take these entries out of the line; those between them keep their places."""
        if not chosen:
            return
        missing = set(chosen)
        self._num_overtakings = 0 if next(iter(self)) in missing else self._num_overtakings + 1
        passed_by: list[Entry] = []
        while missing:
            entry = self._line.popleft()
            if entry in missing:
                missing.discard(entry)
                self._uncount(entry)
            elif entry in self._waiting:
                passed_by.append(entry)
        self._line.extendleft(reversed(passed_by))

    def take_group(self) -> tuple[Entry, ...]:
        """Take the living entries of the first group; empty if no group waits."""
        if group := self.group:
            self._groups.popleft()
            for entry in group:
                self._uncount(entry)
        return group

    def _count(self, entry: Entry) -> None:
        self._waiting.add(entry)
        self._num_tokens += entry.num_tokens
        self._num_image_tokens += entry.num_image_tokens

    def _uncount(self, entry: Entry) -> None:
        self._waiting.remove(entry)
        self._num_tokens -= entry.num_tokens
        self._num_image_tokens -= entry.num_image_tokens


def _deadline_s(entry: Entry) -> float:
    return inf if entry.deadline_s is None else entry.deadline_s

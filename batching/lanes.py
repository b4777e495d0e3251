"""One lane's queue: who waits, in which order, and how much that is.

An entry that nobody waits for any more leaves the counts at once, so that its place in the lane is
free again, and leaves its line when it is met. Nothing is decided here but the order; scheduler.py chooses.

**Between tenants** the one that was served least goes next. Served is counted in device seconds of work,
and who comes new, or comes back, begins with what the one who is next has had: nobody saves up for later,
and nobody pays for having been alone. That is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM
1996). Deficit round robin keeps the same promise to within a quantum, but its turns cannot be looked at
without being taken, and best fit looks further than it takes.
"""

from bisect import insort_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import chain, islice

from batching.cost import Shape
from batching.types import Entry

_SLACK = 64
"""Dead entries a line may hold beyond as many as it holds living ones, before it is swept. And tenants that
have gone whose service is remembered, beyond as many as are here."""


class _Line:
    """Waiting entries of one tenant."""

    __slots__ = (
        "entries",
        "num_image_tokens",
        "num_overtakings",
        "num_squared",
        "num_tokens",
        "num_waiting",
        "served_s",
    )

    def __init__(self, served_s: float) -> None:
        # May hold entries that have left.
        self.entries: deque[Entry] = deque()
        self.num_waiting = 0
        self.num_tokens = 0
        self.num_squared = 0
        self.num_image_tokens = 0
        self.num_overtakings = 0
        self.served_s = served_s


class LaneQueue:
    """Waiting entries of all tenants, each tenant's in the order of arrival or of urgency. Owns the counts.

    In front of them stand *groups*: what is left of a failed pass, to be run again apart from all
    others, or the culprit among them could never be found.

    ``len()`` is the number of waiting entries, those in groups included; iterating gives the living ones
    outside of groups, first in line first.
    """

    def __init__(
        self, *, price_s: Callable[[Shape], float], urgency: Callable[[Entry], float] | None = None
    ) -> None:
        """Begin with an empty lane.

        Args:
            price_s: Device seconds of work that a tenant is charged for an entry.
            urgency: Of a tenant's entries the one with the least goes first. ``None``: the oldest.
        """
        self._price_s = price_s
        self._urgency = urgency
        self._lines: dict[str, _Line] = {}
        # What tenants without a line had been served, as far as it was more than others.
        self._gone_s: dict[str, float] = {}
        self._level_s = 0.0
        self._groups: deque[tuple[Entry, ...]] = deque()
        # Membership is what "waiting" means; lines and groups may hold entries that have left.
        self._waiting: set[Entry] = set()
        self._grouped: set[Entry] = set()
        self._num_tokens = 0
        self._num_squared = 0
        self._num_image_tokens = 0
        self._version = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._waiting

    def __iter__(self) -> Iterator[Entry]:
        if len(self._lines) <= 1:
            return chain.from_iterable(map(self._in_line, self._lines.values()))
        return self._in_turns()

    @property
    def version(self) -> int:
        """Another whenever who waits has changed, or in which order, but for what prices do to the latter."""
        return self._version

    @property
    def num_tenants(self) -> int:
        """Tenants that have something waiting, apart from groups."""
        return len(self._lines)

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting entries."""
        return self._num_tokens

    @property
    def shape(self) -> Shape:
        """All waiting entries as if they were one pass."""
        return Shape(
            num_tokens=self._num_tokens,
            num_squared=self._num_squared,
            num_image_tokens=self._num_image_tokens,
        )

    @property
    def num_overtakings(self) -> int:
        """How often a tenant's first in line was left standing while others behind it were taken."""
        return max((line.num_overtakings for line in self._lines.values()), default=0)

    @property
    def group(self) -> tuple[Entry, ...]:
        """The living entries of the first group; empty if no group waits."""
        while self._groups:
            if living := tuple(entry for entry in self._groups[0] if entry in self._waiting):
                return living
            self._groups.popleft()
        return ()

    def waiting_of(self, tenant: str) -> tuple[int, Shape]:
        """How many entries of a tenant stand in line, and their shape."""
        line = self._lines.get(tenant)
        if line is None:
            return 0, Shape(num_tokens=0)
        shape = Shape(
            num_tokens=line.num_tokens, num_squared=line.num_squared, num_image_tokens=line.num_image_tokens
        )
        return line.num_waiting, shape

    def waiting_before(self, entry: Entry) -> tuple[int, Shape]:
        """How many entries of its tenant would go before this one if it came now, and their shape."""
        if self._urgency is None or entry.tenant not in self._lines:
            return self.waiting_of(entry.tenant)
        urgency = self._urgency
        shapes = [
            other.shape
            for other in self._in_line(self._lines[entry.tenant])
            if urgency(other) <= urgency(entry)
        ]
        return len(shapes), Shape.of(shapes)

    def oldest_arrival_s(self) -> float | None:
        """When the entry that has waited longest arrived; ``None`` if nothing waits."""
        # In a line by arrival the first one is the oldest.
        in_line = (
            islice(self._in_line(line), 1 if self._urgency is None else None) for line in self._lines.values()
        )
        grouped = (entry for group in self._groups for entry in group if entry in self._waiting)
        return min((entry.arrival_s for entry in chain(grouped, *in_line)), default=None)

    def append(self, entry: Entry) -> None:
        """Let an entry wait at the end of its tenant's line, or where its urgency puts it."""
        line = self._lines.get(entry.tenant)
        if line is None:
            line = self._lines[entry.tenant] = _Line(self._served_s(entry.tenant))
        if self._urgency is None:
            line.entries.append(entry)
        else:
            insort_right(line.entries, entry, key=self._urgency)
        line.num_waiting += 1
        line.num_tokens += entry.shape.num_tokens
        line.num_squared += entry.shape.num_squared
        line.num_image_tokens += entry.shape.num_image_tokens
        self._count(entry)

    def push_group(self, entries: Sequence[Entry]) -> None:
        """Let entries that must run apart wait before everything else."""
        self._groups.appendleft(tuple(entries))
        self._grouped.update(entries)
        for entry in entries:
            self._count(entry)

    def discard(self, entry: Entry) -> bool:
        """Forget a waiting entry; false if it does not wait here."""
        if entry not in self._waiting:
            return False
        self._uncount(entry)
        if entry in self._grouped:
            self._grouped.remove(entry)
            return True
        line = self._lines[entry.tenant]
        self._leave(line, entry)
        if len(line.entries) > 2 * line.num_waiting + _SLACK:
            # Or callers who come and go behind one entry that stays would fill the memory.
            line.entries = deque(self._in_line(line))
        return True

    def take(self, chosen: Collection[Entry]) -> None:
        """Take these entries out of their lines; those between them keep their places."""
        if not chosen:
            return
        # A tenant that is next and got nothing was passed by, too.
        by_tenant: dict[str, set[Entry]] = {next(iter(self)).tenant: set()}
        self._level_s = max(self._level_s, self._lines[next(iter(by_tenant))].served_s)
        for entry in chosen:
            by_tenant.setdefault(entry.tenant, set()).add(entry)
        for tenant, missing in by_tenant.items():
            line = self._lines[tenant]
            first = next(self._in_line(line))
            line.num_overtakings = 0 if first in missing else line.num_overtakings + 1
            self._take_from(line, missing)

    def take_group(self) -> tuple[Entry, ...]:
        """Take the living entries of the first group; empty if no group waits."""
        if group := self.group:
            self._groups.popleft()
            self._grouped.difference_update(group)
            for entry in group:
                self._uncount(entry)
        return group

    # Lines and turns.

    def _in_line(self, line: _Line) -> Iterator[Entry]:
        while line.entries and line.entries[0] not in self._waiting:
            line.entries.popleft()
        return (entry for entry in line.entries if entry in self._waiting)

    def _in_turns(self) -> Iterator[Entry]:
        """All tenants' entries as they will be taken if each is taken in its turn. Changes nothing."""
        # The tie-break is the order of coming, so that entries are never compared.
        turns = [
            (line.served_s, number, self._in_line(line)) for number, line in enumerate(self._lines.values())
        ]
        heapify(turns)
        while turns:
            served_s, number, line = turns[0]
            entry = next(line, None)
            if entry is None:
                heappop(turns)
                continue
            heapreplace(turns, (served_s + self._price_s(entry.shape), number, line))
            yield entry

    def _take_from(self, line: _Line, missing: set[Entry]) -> None:
        passed_by: list[Entry] = []
        while missing:
            entry = line.entries.popleft()
            if entry in missing:
                missing.discard(entry)
                line.served_s += self._price_s(entry.shape)
                self._uncount(entry)
                self._leave(line, entry)
            elif entry in self._waiting:
                passed_by.append(entry)
        line.entries.extendleft(reversed(passed_by))

    def _leave(self, line: _Line, entry: Entry) -> None:
        line.num_waiting -= 1
        line.num_tokens -= entry.shape.num_tokens
        line.num_squared -= entry.shape.num_squared
        line.num_image_tokens -= entry.shape.num_image_tokens
        if not line.num_waiting:
            del self._lines[entry.tenant]
            self._remember(entry.tenant, line.served_s)

    def _served_s(self, tenant: str) -> float:
        """What a tenant that had nothing waiting begins with."""
        return max(self._gone_s.pop(tenant, 0.0), self._level_s)

    def _remember(self, tenant: str, served_s: float) -> None:
        if not self._lines:
            # Nobody is left to compare with: all begin again, equal.
            self._gone_s.clear()
            self._level_s = 0.0
            return
        self._gone_s[tenant] = served_s
        if len(self._gone_s) > len(self._lines) + _SLACK:
            # Whoever was overtaken meanwhile begins at the level anyway.
            self._gone_s = {name: s for name, s in self._gone_s.items() if s > self._level_s}
            for name in list(self._gone_s)[: -len(self._lines) - _SLACK]:
                del self._gone_s[name]

    def _count(self, entry: Entry) -> None:
        self._version += 1
        self._waiting.add(entry)
        self._num_tokens += entry.shape.num_tokens
        self._num_squared += entry.shape.num_squared
        self._num_image_tokens += entry.shape.num_image_tokens

    def _uncount(self, entry: Entry) -> None:
        self._version += 1
        self._waiting.remove(entry)
        self._num_tokens -= entry.shape.num_tokens
        self._num_squared -= entry.shape.num_squared
        self._num_image_tokens -= entry.shape.num_image_tokens

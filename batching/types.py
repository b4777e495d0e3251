"""The nouns of the batching room: a lane, an entry that waits in it, a pass that runs.

Payloads are opaque here. What a payload costs stands beside it in tokens; the cost model turns them into
the seconds that passes and lanes are bounded by.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from batching.cost import Shape


class Lane(StrEnum):
    """Who waits behind whom. Earlier members go first."""

    QUERY = "query"
    """Somebody is waiting for the answer: a search, one text."""
    DOCUMENT = "document"
    """Indexing: throughput counts, and progress is guaranteed."""
    BATCH = "batch"
    """Work without a reader: it runs on what the other lanes leave, and on a small share of its own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorkItem:
    """One input as a caller hands it in."""

    payload: object
    """What the runner gets; never looked at in this room."""
    num_tokens: int
    """What the input costs in a pass; at least 1."""
    num_image_tokens: int = 0
    """How many of the tokens stand for images, which cost more: a vision tower reads them first."""

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens is {self.num_tokens}; an input has at least 1 token")
        if not 0 <= self.num_image_tokens <= self.num_tokens:
            raise ValueError(f"{self.num_image_tokens} of {self.num_tokens} tokens are said to be of images")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SubmissionOutcome:
    """What became of the items that were submitted together."""

    results: tuple[object, ...]
    """One result an item, in the order of the items."""
    queue_s: float
    """Longest time that one of the items waited for the pass that answered it."""
    device_s: float
    """Device time of the distinct passes that the items were answered by, neighbours' work included."""
    runner_wait_s: float = 0.0
    """Longest time that one of these passes was with its runner beyond its device time: on its way, behind
    the pass before it, or left for an urgent one."""


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """One input on its way through a lane. Compared by identity: two equal texts are two entries.

    Whether it waits, runs or is done is known to the scheduler alone.
    """

    payload: object
    """What the runner gets; never looked at in this room."""
    lane: Lane
    num_tokens: int
    """What the entry costs in a pass."""
    num_image_tokens: int = 0
    """How many of the tokens stand for images."""
    arrival_s: float
    """When it was admitted, on the clock of the batcher."""
    deadline_s: float | None = None
    """Not worth running from this moment on, on the same clock: it is not put into a pass any more. In one
    that was handed out it stays, even if that has not begun. ``None``: never stale."""
    tenant: str = ""
    """On whose behalf: tenants of a lane get equal parts of its time."""
    num_attempts: int = 0
    """Runners that died while they were running a pass that held this entry."""
    shape: Shape = field(init=False)
    """What the entry adds to the shape of a pass."""

    def __post_init__(self) -> None:
        self.shape = Shape(
            num_tokens=self.num_tokens,
            num_squared=self.num_tokens**2,
            num_image_tokens=self.num_image_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What the runner of a slot can do; ``Runner`` says what the two mean."""

    depth: int = 1
    can_interrupt: bool = False

    def __post_init__(self) -> None:
        if self.depth not in (1, 2):
            raise ValueError(f"the depth of a runner is {self.depth}; it must be 1 or 2")
        if self.can_interrupt and self.depth == 1:
            raise ValueError("a runner that can be interrupted has a depth of 2")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """What runs together on one device, composed when a slot could take it."""

    entries: tuple[Entry, ...]
    slot: int
    """The runner it is for."""
    is_urgent: bool = False
    """It is led by queries, and runs before whatever else the slot has not begun."""
    breaks_in: bool = False
    """It runs between two layers of the pass that runs now."""
    may_interrupt: bool = False
    """It may do so to whatever the runner has begun by the time it gets there."""
    composed_s: float
    """When it was composed, on the clock of the batcher."""
    predicted_s: float
    """Device time that the cost model expected at that moment."""
    shape: Shape = field(init=False)
    """What the duration of the pass depends on."""
    has_queries: bool = field(init=False)
    """Whether somebody waits for the end of it."""

    def __post_init__(self) -> None:
        # Asked for again and again while the pass is out, and always the same.
        object.__setattr__(self, "shape", Shape.of(entry.shape for entry in self.entries))
        object.__setattr__(self, "has_queries", any(entry.lane is Lane.QUERY for entry in self.entries))

    @property
    def num_tokens(self) -> int:
        """Tokens of all entries; a packed pass has no padding."""
        return self.shape.num_tokens

    @property
    def oldest_wait_s(self) -> float:
        """How long the entry that waited longest had waited when the pass was composed."""
        return self.composed_s - min(entry.arrival_s for entry in self.entries)

    def num_entries_by_lane(self) -> dict[Lane, int]:
        """Entries of each lane that takes part."""
        counts: dict[Lane, int] = {}
        for entry in self.entries:
            counts[entry.lane] = counts.get(entry.lane, 0) + 1
        return counts

    def num_tokens_by_lane(self) -> dict[Lane, int]:
        """Tokens of each lane that takes part."""
        counts: dict[Lane, int] = {}
        for entry in self.entries:
            counts[entry.lane] = counts.get(entry.lane, 0) + entry.num_tokens
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """What a finished pass tells: the source of statistics, metrics and the cost model."""

    slot: int
    """Which runner it ran on."""
    is_urgent: bool
    """It overtook what the slot had not begun."""
    breaks_in: bool
    """It was to run between two layers of the pass that ran."""
    num_entries: dict[Lane, int]
    num_tokens: dict[Lane, int]
    run_s: float
    """From handing the pass to the runner until its answer was here; a staged pass waits in it."""
    device_s: float
    """What the device spent on it, as the runner measured, without passes that broke into it; 0 if it
    failed."""
    predicted_s: float
    """What the cost model said before the pass ran."""
    num_padding_tokens: int = 0
    """Tokens that were computed beside those of the entries, as the runner counted; 0 if it failed."""
    oldest_wait_s: float
    """How long the entry that waited longest had waited when the pass was composed."""
    error: str | None = None
    """The error type's name if the pass failed, else ``None``."""

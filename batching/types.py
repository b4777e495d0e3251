"""The nouns of the batching room: a lane, an entry that waits in it, a pass that runs.

Payloads are opaque here. What a payload costs stands beside it in tokens, because that is what a
pass is bounded by.
"""

from dataclasses import dataclass
from enum import StrEnum


class Lane(StrEnum):
    """Who waits behind whom. Earlier members go first."""

    QUERY = "query"
    """Somebody is waiting for the answer: a search, one text."""
    DOCUMENT = "document"
    """Indexing: throughput counts, and progress is guaranteed."""
    BATCH = "batch"
    """Work without a reader: it runs on what the other lanes leave, and on a small share of its own."""


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """One input on its way through a lane. Compared by identity: two equal texts are two entries."""

    payload: object
    """What the runner gets; never looked at in this room."""
    lane: Lane
    num_tokens: int
    """What the entry costs in a pass."""
    arrival_s: float
    """When it was admitted, on the clock of the batcher."""
    deadline_s: float | None = None
    """Not worth running after this moment, on the same clock. ``None``: never stale."""
    is_cancelled: bool = False
    """The caller went away; the scheduler drops the entry when it meets it."""
    num_attempts: int = 0
    """Passes that held this entry and died under it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """What runs together on one device, composed when a slot was free."""

    entries: tuple[Entry, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all entries; a packed pass has no padding."""
        return sum(entry.num_tokens for entry in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """What a finished pass tells: the source of statistics, metrics and the cost model."""

    slot: int
    """Which runner it ran on."""
    num_entries: dict[Lane, int]
    num_tokens: dict[Lane, int]
    run_s: float
    """From handing the pass to the runner until its answer was here."""
    device_s: float
    """What the device spent on it, as the runner measured."""
    predicted_s: float
    """What the cost model said before the pass ran."""
    oldest_wait_s: float
    """How long the entry that waited longest had waited when the pass was composed."""
    error: str | None = None
    """The error type's name if the pass failed, else ``None``."""

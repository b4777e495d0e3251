"""How much may wait, how much may run at once, and what each lane is owed.

Checked once, where it is built; the scheduler trusts what it is handed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType

from batching.types import Lane


def _default_shares() -> Mapping[Lane, float]:
    return {Lane.DOCUMENT: 0.15, Lane.BATCH: 0.05}


def _default_max_waiting_entries() -> Mapping[Lane, int]:
    return {Lane.QUERY: 2_048, Lane.DOCUMENT: 16_384, Lane.BATCH: 65_536}


def _default_max_waiting_s() -> Mapping[Lane, float]:
    return {Lane.QUERY: 2.0, Lane.DOCUMENT: 60.0, Lane.BATCH: 300.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of passes and queues. Passes are bounded in time; the caps on tokens and entries guard memory.

    Raises:
        ValueError: A bound makes no sense; the message names the field and the value.
    """

    max_pass_s: float
    """Longest pass while there are queries, as predicted: what a query waits for its own pass, and for the
    one before it. An entry that takes longer runs alone."""
    max_document_pass_s: float
    """Longest pass of documents when no query was seen for ``quiet_after_s``. Never below ``max_pass_s``."""
    fill_s: float
    """A pass with queries is filled with documents up to so much predicted time in all, or further while
    queries have wasted much; 0 leaves queries alone.

    Below the size at which the device saturates the fill costs the query next to nothing; above it,
    every further document is waited for, and saves the device a part of another pass.
    """
    max_pass_tokens: int
    """Most tokens in one pass, however fast they are. A longer entry runs alone."""
    max_pass_entries: int = 512
    """Most entries in one pass; 1 switches batching off."""
    max_wait_s: float = 0.0
    """Documents wait up to this long for company when a device is free. Queries never do."""
    quiet_after_s: float = 1.0
    """How long after a query document passes are kept short for the next one. 0 suits runners that can be
    interrupted: their long passes make room anyway."""
    query_slo_s: float = 0.1
    """When a query that names no earlier deadline wants its answer. It orders queries and ends none."""
    shares: Mapping[Lane, float] = field(default_factory=_default_shares)
    """Part of the device's time that a lane gets while it has work waiting, whatever goes before it."""
    interruption_share: float = 0.05
    """Part of the device's time that passes of queries may waste while others wait. The more of it is spent,
    the longer the oldest query waits for company, up to ``max_pass_s``; beyond half, passes are filled to
    that (unless ``fill_s`` is 0). When all is spent they break in only after documents have had the device
    for as long; full ones do whatever was wasted. 0 lets none break in."""
    max_waiting_entries: Mapping[Lane, int] = field(default_factory=_default_max_waiting_entries)
    """Most entries that may wait in a lane. Tenants that hold little of it may go beyond, by half at most."""
    max_waiting_s: Mapping[Lane, float] = field(default_factory=_default_max_waiting_s)
    """Most work that may wait in a lane: so long would all ready devices together need for it. One request
    of any size may wait in an empty lane, and tenants that hold little may go beyond, by half at most."""

    def __post_init__(self) -> None:
        _require_seconds("max_pass_s", self.max_pass_s, is_zero_fine=False)
        _require_seconds("max_document_pass_s", self.max_document_pass_s, is_zero_fine=False)
        _require(
            self.max_document_pass_s >= self.max_pass_s,
            f"max_document_pass_s is {self.max_document_pass_s}; "
            f"it must be at least max_pass_s, {self.max_pass_s}",
        )
        _require(
            0 <= self.fill_s <= self.max_pass_s,
            f"fill_s is {self.fill_s}; it must be between 0 and max_pass_s, {self.max_pass_s}",
        )
        for name in ("max_pass_tokens", "max_pass_entries"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_wait_s", "quiet_after_s", "query_slo_s"):
            _require_seconds(name, getattr(self, name), is_zero_fine=True)
        _check_shares(self.shares)
        _require(
            0 <= self.interruption_share < 1,
            f"interruption_share is {self.interruption_share}; it must be at least 0 and below 1",
        )
        _check_bounds("max_waiting_entries", self.max_waiting_entries)
        _check_bounds("max_waiting_s", self.max_waiting_s)
        # A mapping that somebody else may still change would make this frozen in name only.
        for name in ("shares", "max_waiting_entries", "max_waiting_s"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


def _check_shares(shares: Mapping[Lane, float]) -> None:
    _require(Lane.QUERY not in shares, "the query lane has no share: it goes first anyway")
    for lane, share in shares.items():
        _require(
            0 <= share < 1, f"the share of the {lane} lane is {share}; it must be at least 0 and below 1"
        )
    total = sum(shares.values())
    _require(total < 1, f"the shares add up to {total:g}; the queries need the rest, so it must be below 1")


def _check_bounds(name: str, bounds: Mapping[Lane, float]) -> None:
    for lane in Lane:
        _require(lane in bounds, f"{name} has no value for the {lane} lane")
        _require(bounds[lane] > 0, f"{name} of the {lane} lane is {bounds[lane]}; it must be more than 0")


def _require_seconds(name: str, value: float, *, is_zero_fine: bool) -> None:
    is_met = isfinite(value) and (value > 0 or (is_zero_fine and value == 0))
    _require(is_met, f"{name} is {value}; it must be {'0 or ' if is_zero_fine else ''}a number of seconds")


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise ValueError(message)

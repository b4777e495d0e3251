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


def _default_max_waiting_tokens() -> Mapping[Lane, int]:
    # 512 tokens for each of the entries above.
    return {Lane.QUERY: 1_048_576, Lane.DOCUMENT: 8_388_608, Lane.BATCH: 33_554_432}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of passes and queues.

    Raises:
        ValueError: A bound makes no sense; the message names the field and the value.
    """

    max_pass_tokens: int
    """Most tokens in one pass. A longer entry runs alone."""
    fill_tokens: int
    """A pass with queries is filled with documents up to so many tokens in all; 0 leaves queries alone.

    Below the size at which the device saturates the fill costs the query next to nothing; above it,
    every further document is waited for.
    """
    max_pass_entries: int = 512
    """Most entries in one pass; 1 switches batching off."""
    max_wait_s: float = 0.0
    """Documents wait up to this long for company when a device is free. Queries never do."""
    shares: Mapping[Lane, float] = field(default_factory=_default_shares)
    """Part of the device's time that a lane gets while it has work waiting, whatever goes before it."""
    max_waiting_entries: Mapping[Lane, int] = field(default_factory=_default_max_waiting_entries)
    """Most entries that may wait in a lane."""
    max_waiting_tokens: Mapping[Lane, int] = field(default_factory=_default_max_waiting_tokens)
    """Most tokens that may wait in a lane."""

    def __post_init__(self) -> None:
        tokens, fill = self.max_pass_tokens, self.fill_tokens
        _require(tokens >= 1, f"max_pass_tokens is {tokens}; it must be at least 1")
        _require(
            0 <= fill <= tokens,
            f"fill_tokens is {fill}; it must be between 0 and max_pass_tokens, {tokens}",
        )
        _require(
            self.max_pass_entries >= 1,
            f"max_pass_entries is {self.max_pass_entries}; it must be at least 1",
        )
        _require(
            isfinite(self.max_wait_s) and self.max_wait_s >= 0,
            f"max_wait_s is {self.max_wait_s}; it must be 0 or a number of seconds",
        )
        _check_shares(self.shares)
        _check_bounds("max_waiting_entries", self.max_waiting_entries)
        _check_bounds("max_waiting_tokens", self.max_waiting_tokens)
        # A mapping that somebody else may still change would make this frozen in name only.
        for name in ("shares", "max_waiting_entries", "max_waiting_tokens"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


def _check_shares(shares: Mapping[Lane, float]) -> None:
    _require(Lane.QUERY not in shares, "the query lane has no share: it goes first anyway")
    for lane, share in shares.items():
        _require(
            0 <= share < 1, f"the share of the {lane} lane is {share}; it must be at least 0 and below 1"
        )
    total = sum(shares.values())
    _require(total < 1, f"the shares add up to {total:g}; the queries need the rest, so it must be below 1")


def _check_bounds(name: str, bounds: Mapping[Lane, int]) -> None:
    for lane in Lane:
        _require(lane in bounds, f"{name} has no value for the {lane} lane")
        _require(bounds[lane] >= 1, f"{name} of the {lane} lane is {bounds[lane]}; it must be at least 1")


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise ValueError(message)

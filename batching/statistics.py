"""Snapshots of the scheduler: plain facts for whoever exports them."""

from dataclasses import dataclass

from batching.types import Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLoad:
    """How much waits in a lane: what can be told at once, however much that is."""

    num_waiting: int
    """Entries in the queue now."""
    num_waiting_tokens: int
    """Their tokens."""
    waiting_s: float
    """How long all devices that are ready would need for them together."""
    max_waiting_tokens: int
    """About how many tokens may wait, at the speed of today."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatistics:
    """A snapshot of one lane.

    Nothing is lost: ``num_admitted`` is the sum of ``num_waiting``, ``num_running``, ``num_done``,
    ``num_failed``, ``num_cancelled`` and ``num_expired``.
    """

    num_waiting: int
    """Entries in the queue now."""
    num_waiting_tokens: int
    """Their tokens."""
    oldest_wait_s: float
    """How long the one that has waited longest has been here; 0 if nothing waits."""
    num_running: int
    """Entries in passes that are out, staged ones included, without those that nobody waits for any more."""
    num_admitted: int
    """Entries taken in since the start."""
    num_refused: int
    """Entries turned away: the lane was full, could never hold their request, or had no time for them."""
    num_done: int
    """Entries that got a result."""
    num_failed: int
    """Entries given up: by their own fault, or after their last retry."""
    num_cancelled: int
    """Entries whose caller went away first."""
    num_expired: int
    """Entries whose deadline came first."""
    device_s: float
    """Device time spent on the lane: its part of each pass, by work."""
    waiting_s: float = 0.0
    """How long all devices that are ready would need together for what waits."""
    num_tenants: int = 0
    """Tenants that have something waiting."""
    num_promised: int = 0
    """Entries that were refused, and for which room is kept until they come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """A snapshot of the scheduler."""

    lanes: dict[Lane, LaneStatistics]
    num_running_passes: int
    """Passes out on runners now, staged ones included."""
    num_passes: int
    """Passes that came back with results since the start."""
    num_failed_passes: int
    """Passes that came back with none: the runner died, or the model raised."""
    num_staged_passes: int = 0
    """Passes out on runners that wait there for another one to end."""
    num_urgent_passes: int = 0
    """Passes that overtook a staged one, or broke into a running one, since the start."""
    num_interruptions: int = 0
    """Urgent passes that were allowed to break in."""
    wasted_s: float = 0.0
    """Device time that passes with queries took from documents that waited, by prediction: what those passes
    cost apart from their work."""

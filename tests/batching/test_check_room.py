"""A look at the room in a lane before it is known what entries cost: it never refuses whom admission would let in."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batching import Lane, QueueFullError, Scheduler, SubmissionTooLargeError
from tests.batching.fakes import PHASES, entry, known_cost, limits

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def outcome_of(scheduler: Scheduler, sizes: list[int], tenant: str) -> type[Exception] | None:
    try:
        scheduler.admit([entry(num_tokens=size, tenant=tenant) for size in sizes], 0.0)
    except (QueueFullError, SubmissionTooLargeError) as error:
        return type(error)
    return None


@settings(max_examples=300, deadline=None, phases=PHASES)
@given(
    waiting=st.lists(st.tuples(SIZES, st.sampled_from("ab")), max_size=8),
    new=SIZES,
    tenant=st.sampled_from("abc"),
    max_entries=st.integers(1, 20),
    max_s=st.sampled_from([0.05, 0.3, 100.0]),
)
@example(waiting=[([50, 50], "a")], new=[50], tenant="a", max_entries=20, max_s=0.12)
def test_whoever_is_refused_unseen_would_have_been_refused(
    waiting: list[tuple[list[int], str]], new: list[int], tenant: str, max_entries: int, max_s: float
):
    bounds = limits(max_waiting_entries=max_entries, max_waiting_s=max_s)
    scheduler = Scheduler(bounds, cost=known_cost())
    for sizes, whose in waiting:
        outcome_of(scheduler, sizes, whose)
    early: type[Exception] | None = None
    try:
        scheduler.check_room(Lane.DOCUMENT, tenant=tenant, num_entries=len(new), now_s=0.0)
    except (QueueFullError, SubmissionTooLargeError) as error:
        early = type(error)
    later = outcome_of(scheduler, new, tenant)
    assert early in (None, later)
    # By the count alone nothing is left to find out later.
    if later is SubmissionTooLargeError:
        assert early is later


def test_a_lane_that_is_full_tells_the_same_before_and_after_its_entries_are_known():
    """By their number, and by the work of those that wait, with the least that they can bring to it."""
    for bounds, least in ((limits(max_waiting_entries=4), ""), (limits(max_waiting_s=0.05), "at least ")):
        scheduler = Scheduler(bounds, cost=known_cost())
        scheduler.admit([entry() for _ in range(4)], 0.0)
        with pytest.raises(QueueFullError) as early:
            scheduler.check_room(Lane.DOCUMENT, tenant="", num_entries=3, now_s=0.0)
        with pytest.raises(QueueFullError) as later:
            scheduler.admit([entry(num_tokens=1) for _ in range(3)], 0.0)
        assert vars(early.value) == {**vars(later.value), "is_at_least": bool(least)}
        assert str(early.value) == str(later.value).replace("brings ", f"brings {least}")
        assert scheduler.statistics(0.0).lanes[Lane.DOCUMENT].num_refused == 6

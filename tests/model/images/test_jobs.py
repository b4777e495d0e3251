"""Which image is next: queries before documents, and requests in turn."""

import asyncio
from collections.abc import Hashable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.images.jobs import Job, WaitingJobs


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[None]:
    """Futures want one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


def job(name: str, *, group: Hashable = None, is_query: bool = False) -> Job:
    answer = asyncio.get_event_loop().create_future()
    return Job(data=name.encode(), is_query=is_query, group=group or name, answer=answer)


def waiting(*jobs: Job) -> WaitingJobs:
    lane = WaitingJobs()
    for one in jobs:
        lane.add(one)
    return lane


def names(jobs: list[Job]) -> str:
    return " ".join(one.data.decode() for one in jobs)


def test_groups_take_turns_and_each_keeps_its_order():
    """A request of three images holds up a request of one by a single image."""
    lane = waiting(*(job(f"a{i}", group="a") for i in range(3)), job("b0", group="b"), job("c0", group="c"))
    lane.add(job("b1", group="b"))
    assert names(lane.take_all()) == "a0 b0 c0 a1 b1 a2"


def test_jobs_of_different_groups_come_in_the_order_they_came():
    assert names(waiting(*(job(str(i)) for i in range(4))).take_all()) == "0 1 2 3"


def test_a_group_that_has_had_its_turn_waits_behind_those_that_came_meanwhile():
    lane = waiting(*(job(f"a{i}", group="a") for i in range(3)))
    first = lane.take(takes_documents=True)
    lane.add(job("b0", group="b"))
    assert first is not None
    assert names([first, *lane.take_all()]) == "a0 a1 b0 a2"


def test_queries_come_before_documents_and_are_all_that_some_processes_take():
    lane = waiting(job("d", group="g"), job("q", group="g", is_query=True))
    assert (lane.num_queries, lane.num_documents) == (1, 1)
    assert names([one for _ in range(2) if (one := lane.take(takes_documents=False))]) == "q"
    assert names(lane.take_all()) == "d"


def test_a_job_that_is_tried_again_is_the_next_one():
    lane = waiting(*(job(f"{group}{i}", group=group) for i in range(2) for group in "ab"))
    again = lane.take(takes_documents=True)
    assert again is not None
    lane.add_first(again)
    assert names(lane.take_all()) == "a0 b0 a1 b1"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=30))
def test_every_job_is_taken_once_unless_its_caller_goes_away(described: list[tuple[str, bool, bool]]):
    jobs = [job(str(i), group=group, is_query=is_query) for i, (group, is_query, _) in enumerate(described)]
    lane = waiting(*jobs)
    gone = [one for one, (_, _, goes_away) in zip(jobs, described, strict=True) if goes_away]
    for one in (*gone, *gone):
        lane.discard(one)
    assert lane.num_queries + lane.num_documents == len(jobs) - len(gone)
    taken = lane.take_all()
    assert {id(one) for one in taken} == {id(one) for one in jobs} - {id(one) for one in gone}
    assert len(taken) == len(jobs) - len(gone)
    assert lane.take(takes_documents=True) is None
    for one in taken:
        lane.discard(one)

"""Passes that find no memory: what is composed after them, and whoever is in them."""

import pytest

from batching import Batcher, EntryFailedError, Lane, Pass, RunnerMemoryError, RunResult, Scheduler
from tests.batching.fakes import (
    FakeRunner,
    Item,
    entry,
    known_cost,
    limits,
    now_s,
    on_virtual_time,
)


def pass_of(scheduler: Scheduler, *sizes: int) -> Pass:
    """The pass that holds entries of so many tokens."""
    scheduler.admit([entry(num_tokens=size) for size in sizes], 0.0)
    composed = scheduler.next_pass(0.0)
    assert composed is not None
    assert len(composed.entries) == len(sizes)
    return composed


@pytest.mark.parametrize(
    ("sizes", "max_tokens"),
    [
        # Its halves are what runs next.
        ((25, 25, 25, 25), 50),
        # The largest would run alone: others of its size may as well share a pass.
        ((60, 20, 20), 60),
        # One alone says nothing of many small ones.
        ((100,), None),
        ((300,), None),
    ],
)
def test_a_pass_that_found_no_memory_bounds_those_after_it(sizes: tuple[int, ...], max_tokens: int | None):
    scheduler = Scheduler(limits(max_pass_tokens=100), cost=known_cost())
    assert scheduler.shrink_passes(pass_of(scheduler, *sizes)) == max_tokens
    assert scheduler.limits.max_pass_tokens == (max_tokens or 100)


def test_a_turn_of_the_documents_costs_less_where_passes_are_smaller():
    """The credit that did not pay for a pass of 100 tokens pays for one of 50."""
    bounds = limits(max_pass_tokens=100, document_share=0.6, batch_share=0, fill_tokens=0)
    scheduler = Scheduler(bounds, cost=known_cost())
    large = pass_of(scheduler, 25, 25, 25, 25)
    scheduler.finish(large, 0.0, device_s=large.predicted_s)
    scheduler.admit([entry(num_tokens=10) for _ in range(10)], 0.0)
    scheduler.admit([entry(lane=Lane.QUERY, num_tokens=100) for _ in range(2)], 0.0)
    queries = scheduler.next_pass(0.0)
    assert queries is not None
    assert queries.has_queries
    scheduler.finish(queries, 0.0, device_s=queries.predicted_s)
    # 66 ms are owed. The turn costs 110 as passes are now, and 60 when they have shrunk.
    scheduler.next_event_s(0.0)
    assert scheduler.shrink_passes(large) == 50
    documents = scheduler.next_pass(0.0)
    assert documents is not None
    assert not documents.has_queries


def test_one_that_was_composed_before_the_bound_lowers_it_no_further():
    """Two were out when the first came back: they say the same thing twice."""
    scheduler = Scheduler(limits(max_pass_tokens=100), cost=known_cost())
    lost = pass_of(scheduler, 50, 50)
    assert [scheduler.shrink_passes(lost) for _ in range(2)] == [50, None]


def test_what_may_wait_is_counted_in_passes_of_the_new_size():
    """Each costs 10 ms beside its tokens, so the same tokens take longer, and fewer may wait."""
    scheduler = Scheduler(limits(max_pass_tokens=100), cost=known_cost())
    before = scheduler.lane_load(Lane.DOCUMENT).max_waiting_tokens
    scheduler.shrink_passes(pass_of(scheduler, 50, 50))
    assert scheduler.lane_load(Lane.DOCUMENT).max_waiting_tokens < before


class SmallRunner(FakeRunner):
    """Has memory for so many tokens at once."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.sizes: list[int] = []

    async def run(self, payloads, *, is_urgent: bool, may_interrupt: bool) -> RunResult:
        self.sizes.append(sum(item.num_tokens for item in payloads))
        if self.sizes[-1] > self.max_tokens:
            raise RunnerMemoryError("no memory for the pass")
        return await super().run(payloads, is_urgent=is_urgent, may_interrupt=may_interrupt)


def test_memory_is_run_out_of_once_and_everybody_is_answered(caplog: pytest.LogCaptureFixture):
    """Each pass used to be composed as large as the one before, to be lost and run again in halves."""

    async def main() -> SmallRunner:
        runner = SmallRunner(max_tokens=60)
        batcher = Batcher([runner], limits=limits(max_pass_tokens=100), cost=known_cost(), clock=now_s)
        batcher.start()
        items = [Item(name=str(number)).work() for number in range(40)]
        outcome = await batcher.submit(items, lane=Lane.DOCUMENT)
        assert outcome.results == tuple(f"vector of {number}" for number in range(40))
        assert batcher.limits.max_pass_tokens == 50
        await batcher.stop(0)
        return runner

    runner = on_virtual_time(main)
    assert runner.sizes == [100, *[50] * 8]
    assert [record.getMessage() for record in caplog.records] == [
        "batcher: a pass of 100 tokens found no memory; passes are kept to 50 tokens from now on"
    ]


def test_an_input_that_alone_finds_no_memory_fails_and_harms_nobody():
    async def main() -> int:
        runner = SmallRunner(max_tokens=60)
        batcher = Batcher([runner], limits=limits(max_pass_tokens=100), cost=known_cost(), clock=now_s)
        batcher.start()
        with pytest.raises(EntryFailedError) as caught:
            await batcher.submit([Item(num_tokens=80).work()], lane=Lane.DOCUMENT)
        assert isinstance(caught.value.__cause__, RunnerMemoryError)
        await batcher.submit([Item().work()], lane=Lane.DOCUMENT)
        max_tokens = batcher.limits.max_pass_tokens
        await batcher.stop(0)
        return max_tokens

    assert on_virtual_time(main) == 100

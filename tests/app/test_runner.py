"""A worker as the batcher sees it: payloads are features, results are rows or errors."""

import asyncio

import numpy as np
import pytest

from app.runner import WorkerRunner, pass_timeout_s
from batching import CostModel, RunnerLostError, RunnerMemoryError
from model import (
    Features,
    NonFiniteRowError,
    PassFailedError,
    PassNotBegunError,
    PassOutOfMemoryError,
    WorkerDiedError,
)
from tests.app.test_engine import BAD, FakeWorker


def features_of(*first_tokens: int) -> list[Features]:
    return [Features(token_ids=np.array([token], dtype=np.int32)) for token in first_tokens]


async def test_a_runner_gives_a_row_or_an_error_for_each_payload():
    result = await WorkerRunner(FakeWorker(device_s=0.25), CostModel()).run(
        features_of(1, BAD, 3), is_urgent=False, may_interrupt=False
    )
    first, bad, last = result.results
    assert isinstance(bad, NonFiniteRowError)
    assert [np.asarray(first).tolist(), np.asarray(last).tolist()] == [[1, 1], [3, 1]]
    assert result.device_s == 0.25


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (WorkerDiedError("killed by signal 9"), RunnerLostError),
        (PassOutOfMemoryError("no memory for the pass"), RunnerMemoryError),
        (PassFailedError("it raised"), PassFailedError),
    ],
)
async def test_a_death_and_a_lack_of_memory_are_told_from_a_fault_of_the_pass(
    raised: Exception, expected: type[Exception]
):
    with pytest.raises(expected, match=str(raised)):
        await WorkerRunner(FakeWorker(failures=[raised]), CostModel()).run(
            features_of(1), is_urgent=False, may_interrupt=False
        )


@pytest.mark.parametrize("raised", [WorkerDiedError("killed"), PassNotBegunError("killed before")])
async def test_a_pass_that_never_began_is_known_to_be_innocent(raised: WorkerDiedError):
    with pytest.raises(RunnerLostError) as caught:
        await WorkerRunner(FakeWorker(failures=[raised]), CostModel()).run(
            features_of(1), is_urgent=False, may_interrupt=False
        )
    assert caught.value.has_begun is not isinstance(raised, PassNotBegunError)


async def test_a_worker_that_hangs_is_given_up_after_many_times_the_pass_and_not_after_minutes():
    """A query may sit in that pass: two minutes are as good as never."""
    cost = CostModel(fixed_s=0.0, per_token_s=0.5)
    worker = FakeWorker()
    runner = WorkerRunner(worker, cost)
    await runner.run(features_of(1), is_urgent=False, may_interrupt=False)
    await runner.run(features_of(1, 2, 3), is_urgent=False, may_interrupt=False)
    assert worker.timeouts_s == [25.0, 75.0]
    assert pass_timeout_s(0.01) == 10.0


async def test_a_runner_is_ready_when_its_worker_is():
    worker = FakeWorker()
    runner = WorkerRunner(worker, CostModel())
    worker.ready.clear()
    assert not runner.is_ready
    waiting = asyncio.create_task(runner.wait_ready())
    await asyncio.wait([waiting], timeout=0)
    assert not waiting.done()
    worker.ready.set()
    assert runner.is_ready
    await waiting


async def test_a_runner_says_what_its_worker_can_and_hands_on_how_urgent_a_pass_is():
    worker = FakeWorker()
    runner = WorkerRunner(worker, CostModel())
    assert (runner.depth, runner.can_interrupt) == (2, False)
    worker.can_interrupt = True
    assert runner.can_interrupt
    await runner.run(features_of(1), is_urgent=True, may_interrupt=True)
    assert worker.flags == [(True, True)]

"""Who is tokenised next. The tokeniser of these tests waits at each chunk until it is let on."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest

from app.pass_limits import batching_limits
from app.preparation import Preparation, RequestTooLargeError, cut_chunks, preparation_chars
from app.settings import BatchingSettings
from batching import (
    DeadlineError,
    DeadlineUnmeetableError,
    Lane,
    QueueFullError,
    ShuttingDownError,
)
from model import DecodedImage, EmbeddingInput, Features, Preparer

TIMEOUT_S = 10
"""A test that waits so long has failed."""
QUERY, DOCUMENT, BATCH = Lane


def chunks_of(name: str, count: int = 1) -> list[EmbeddingInput]:
    """Inputs so long that each is a chunk by itself; its name stands first."""
    return [EmbeddingInput(text=f"{name} ".ljust(150_000, "-"))] * count


@dataclass(eq=False)
class GatedPreparer:
    """Notes whose chunk it has begun, and finishes as many as it is let."""

    chunk_s: float = 0.0
    """By so much the clock goes on with each chunk."""

    def __post_init__(self) -> None:
        self.begun: list[str] = []
        self.now_s = 0.0
        self._permits = threading.Semaphore(0)
        self._has_begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.failure: Exception | None = None

    def prepare(self, inputs: Sequence[EmbeddingInput]) -> list[Features]:
        self.begun.append(cast("str", inputs[0].text).split()[0])
        self._loop.call_soon_threadsafe(self._has_begun.set)
        assert self._permits.acquire(timeout=TIMEOUT_S), "nobody let it on"
        self.now_s += self.chunk_s
        if self.failure is not None:
            raise self.failure
        return [Features(token_ids=np.ones(100, dtype=np.int32)) for _ in inputs]

    async def next_chunk(self) -> None:
        """Return when it has begun another one."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._has_begun.wait()
        self._has_begun.clear()

    def let_on(self, num_chunks: int = 1_000) -> None:
        self._permits.release(num_chunks)


@asynccontextmanager
async def preparing(
    preparer: GatedPreparer, *, settings: BatchingSettings | None = None, max_request_tokens: int = 300_000
) -> AsyncGenerator[Preparation]:
    preparation = Preparation(
        cast("Preparer", preparer),
        limits=batching_limits(settings or BatchingSettings(), is_cuda=False),
        max_request_tokens=max_request_tokens,
        clock=lambda: preparer.now_s,
    )
    preparation.start()
    try:
        yield preparation
    finally:
        preparer.let_on()
        await preparation.stop()


async def settle() -> None:
    """Let everything happen that waits for nothing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def together(waiting: Sequence[asyncio.Task[list[Features]]]) -> list[list[Features]]:
    async with asyncio.timeout(TIMEOUT_S):
        return await asyncio.gather(*waiting)


async def order_of(
    preparer: GatedPreparer, preparation: Preparation, *requests: tuple[str, int, Lane, str]
) -> list[str]:
    """In which order chunks are tokenised if the first one's begins, and then the others come."""
    waiting: list[asyncio.Task[list[Features]]] = []
    for name, count, lane, tenant in requests:
        prepare = preparation.prepare(chunks_of(name, count), lane=lane, tenant=tenant, timeout_s=None)
        waiting.append(asyncio.create_task(prepare))
        if len(waiting) == 1:
            await preparer.next_chunk()
    await settle()
    preparer.let_on()
    answers = await together(waiting)
    assert [len(features) for features in answers] == [count for _, count, _, _ in requests]
    return preparer.begun


# Pieces ----------------------------------------------------------------------------------------------------


def test_a_chunk_is_bounded_by_inputs_and_by_characters():
    """Tokenising cannot be interrupted: whoever comes next waits for the whole call."""
    assert list(cut_chunks([100] * 130)) == [range(64), range(64, 128), range(128, 130)]
    assert list(cut_chunks([90_000] * 5)) == [range(2), range(2, 4), range(4, 5)]
    assert list(cut_chunks([900_000, 10, 10])) == [range(1), range(1, 3)]
    assert list(cut_chunks([])) == []


def test_all_that_is_tokenised_counts():
    """An instruction goes in front of every input; forgotten, it would be tokenised for nothing 2,048 times."""
    empty = preparation_chars(EmbeddingInput(text=""))
    assert preparation_chars(EmbeddingInput(text="a" * 30)) == empty + 30
    assert preparation_chars(EmbeddingInput(text="a" * 30, instruction="b" * 500)) == empty + 530
    assert preparation_chars(EmbeddingInput(token_ids=(1,) * 40)) == empty + 40
    image = DecodedImage(pixels=np.zeros((28, 28, 3), dtype=np.uint8), num_tokens=1)
    assert preparation_chars(EmbeddingInput(images=(image, image))) == empty + 400


# Turns -----------------------------------------------------------------------------------------------------


async def test_whoever_goes_first_in_the_lanes_goes_first_here():
    """Two hundred requests of the batch lane used to keep somebody's document from its lane for seconds."""
    async with preparing(preparer := GatedPreparer()) as preparation:
        order = await order_of(
            preparer,
            preparation,
            ("batch", 3, BATCH, ""),
            ("document", 2, DOCUMENT, ""),
            ("query", 2, QUERY, ""),
        )
    assert order == ["batch", "query", "query", "document", "document", "batch", "batch"]


async def test_tenants_take_turns_and_each_ones_requests_keep_their_order():
    async with preparing(preparer := GatedPreparer()) as preparation:
        order = await order_of(
            preparer,
            preparation,
            ("first", 3, DOCUMENT, "large"),
            ("second", 2, DOCUMENT, "large"),
            ("other", 2, DOCUMENT, "small"),
        )
    assert order == ["first", "other", "first", "other", "first", "second", "second"]


async def test_a_lane_behind_gets_its_share_of_the_tokeniser():
    """Nothing is starved here that is not starved in the lanes: the batch lane is owed a twentieth."""
    async with preparing(preparer := GatedPreparer(chunk_s=0.04)) as preparation:
        order = await order_of(preparer, preparation, ("document", 60, DOCUMENT, ""), ("batch", 2, BATCH, ""))
    first, second = (place for place, name in enumerate(order) if name == "batch")
    assert 10 <= first <= 25
    assert second < 45


async def test_short_chunks_of_several_requests_are_not_put_together():
    """Each would wait for the others' answers, and share their faults."""
    inputs = [EmbeddingInput(text="document ".ljust(1_500))]
    async with preparing(preparer := GatedPreparer()) as preparation:
        waiting = [
            asyncio.create_task(preparation.prepare(inputs, lane=DOCUMENT, timeout_s=None)) for _ in range(4)
        ]
        await preparer.next_chunk()
        await settle()
        preparer.let_on()
        assert [len(features) for features in await together(waiting)] == [1] * 4
    assert len(preparer.begun) == 4


async def test_queries_that_are_not_long_wait_for_none_of_this():
    async with preparing(preparer := GatedPreparer()) as preparation:
        blocked = asyncio.create_task(
            preparation.prepare(chunks_of("document"), lane=DOCUMENT, timeout_s=None)
        )
        await preparer.next_chunk()
        query = asyncio.create_task(
            preparation.prepare([EmbeddingInput(text="query ".ljust(2_000))], lane=QUERY, timeout_s=None)
        )
        await preparer.next_chunk()
        assert preparer.begun == ["document", "query"]
        preparer.let_on()
        await together([blocked, query])


# Whoever does not wait to the end --------------------------------------------------------------------------


async def test_a_deadline_is_answered_when_it_comes_and_the_rest_is_not_tokenised():
    """It used to be noticed when all of the request had been tokenised."""
    async with preparing(preparer := GatedPreparer()) as preparation:
        request = preparation.prepare(chunks_of("late", 3), lane=DOCUMENT, timeout_s=0.5)
        waiting = asyncio.create_task(request)
        await preparer.next_chunk()
        preparer.now_s = 0.6
        other = asyncio.create_task(preparation.prepare(chunks_of("other"), lane=DOCUMENT, timeout_s=None))
        with pytest.raises(DeadlineError, match="after 600 ms"):
            await together([waiting])
        preparer.let_on()
        await together([other])
    assert preparer.begun == ["late", "other"]


async def test_what_cannot_be_tokenised_in_time_is_refused_at_once():
    """60 chunks of 150,000 characters, at 0.27 us each, are before it."""
    async with preparing(preparer := GatedPreparer()) as preparation:
        before = asyncio.create_task(
            preparation.prepare(chunks_of("before", 60), lane=DOCUMENT, timeout_s=None)
        )
        await preparer.next_chunk()
        with pytest.raises(DeadlineUnmeetableError, match="the deadline is in 2000 ms"):
            await preparation.prepare(chunks_of("late", 60), lane=DOCUMENT, timeout_s=2.0)
        preparer.let_on()
        await together([before])
    assert "late" not in preparer.begun


async def test_a_query_that_is_late_is_not_tokenised_to_its_end():
    inputs = [EmbeddingInput(text="query")] * 200  # four chunks
    async with preparing(preparer := GatedPreparer(chunk_s=0.4)) as preparation:
        preparer.let_on()
        with pytest.raises(DeadlineError, match="after 800 ms"):
            await preparation.prepare(inputs, lane=QUERY, timeout_s=0.5)
    assert preparer.begun == ["query", "query"]


async def test_whoever_goes_away_leaves_the_line():
    async with preparing(preparer := GatedPreparer()) as preparation:
        gone = asyncio.create_task(preparation.prepare(chunks_of("gone", 5), lane=DOCUMENT, timeout_s=None))
        await preparer.next_chunk()
        stays = asyncio.create_task(preparation.prepare(chunks_of("stays"), lane=BATCH, timeout_s=None))
        await settle()
        gone.cancel()
        preparer.let_on()
        await together([stays])
        assert gone.cancelled()
    assert preparer.begun == ["gone", "stays"]


async def test_more_than_the_lane_may_have_waiting_is_refused_with_a_wait():
    settings = BatchingSettings(max_batch_queue_s=1.0)
    async with preparing(preparer := GatedPreparer(), settings=settings) as preparation:
        filling = asyncio.create_task(
            preparation.prepare(chunks_of("filling", 50), lane=BATCH, timeout_s=None)
        )
        await preparer.next_chunk()
        with pytest.raises(QueueFullError, match=r"the batch lane is full: .* seconds of work") as caught:
            await preparation.prepare(chunks_of("refused", 50), lane=BATCH, timeout_s=None)
        assert 1.0 < caught.value.retry_after_s < 60
        preparer.let_on()
        await together([filling])
    assert "refused" not in preparer.begun


async def test_a_request_of_too_many_tokens_leaves_the_line_at_the_chunk_that_is_too_much():
    async with preparing(preparer := GatedPreparer(), max_request_tokens=250) as preparation:
        preparer.let_on()
        with pytest.raises(RequestTooLargeError, match="Requested at least 300 tokens, max 250"):
            await preparation.prepare(chunks_of("large", 5), lane=DOCUMENT, timeout_s=None)
        await preparation.prepare(chunks_of("next"), lane=DOCUMENT, timeout_s=None)
    assert preparer.begun == ["large"] * 3 + ["next"]


async def test_a_fault_of_the_tokeniser_is_told_as_it_is_and_ends_nothing():
    async with preparing(preparer := GatedPreparer()) as preparation:
        preparer.let_on()
        preparer.failure = RuntimeError("a bug")
        with pytest.raises(RuntimeError, match="a bug"):
            await preparation.prepare(chunks_of("first"), lane=DOCUMENT, timeout_s=None)
        preparer.failure = None
        assert await preparation.prepare(chunks_of("second"), lane=DOCUMENT, timeout_s=None)


@pytest.mark.parametrize(
    ("inputs", "lane"),
    [(chunks_of("document", 2), DOCUMENT), ([EmbeddingInput(text="query")] * 200, QUERY)],
    ids=["document", "query"],
)
async def test_a_stop_answers_whoever_waits(inputs: list[EmbeddingInput], lane: Lane):
    async with preparing(preparer := GatedPreparer()) as preparation:
        waiting = asyncio.create_task(preparation.prepare(inputs, lane=lane, timeout_s=None))
        await preparer.next_chunk()
        await preparation.stop()
        preparer.let_on()
        with pytest.raises(ShuttingDownError):
            await together([waiting])
        with pytest.raises(ShuttingDownError):
            await preparation.prepare(inputs, lane=lane, timeout_s=None)
    assert len(preparer.begun) == 1

"""Images of requests in flight stay within bounds on memory, and nobody waits for ever or for a stranger."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
import pytest

from app import media
from app.answers import explain
from app.engine import Engine
from app.errors import ImageQueueFullError, InputFailedError
from app.fetch import FetchStatistics
from app.images import ImageReference
from app.inputs import EmbeddingRequest
from app.media import ImageIntake, embed_with_images, file_bytes, pixel_bytes
from app.settings import MediaSettings
from batching import DeadlineError, Lane
from model import (
    DecodedImage,
    DecodeFailedError,
    DecoderUnavailableError,
    EmbeddingInput,
    ImageInputs,
    ImageMemoryError,
    ImageSpec,
    ImageTimeoutError,
    ImageTokens,
    InvalidImageError,
)
from model.images import ResizeRule
from tests.app.fakes import INFO, FakeEngine, Gateway

T = TypeVar("T")

SPEC = ImageSpec(patch_size=14, merge_size=2, resizes=(ResizeRule(min_tokens=4, max_tokens=16),))
IMAGES = ImageInputs(
    spec=SPEC, tokens=ImageTokens(start=(1,), pad=2, end=(3,)), max_images=1, is_fused_with_text=True
)
PIXEL_BYTES = 16 * 28 * 28 * 3
URL = "http://images.test/"
NOTHING_FETCHED = FetchStatistics(num_running=0, num_fetched=0, num_bytes=0, num_failed={})


@dataclass
class FakeLoader:
    """Every image is there at once, or as soon as the test lets it arrive; its file is its reference."""

    may_arrive: asyncio.Event = field(default_factory=asyncio.Event)
    loaded: list[str] = field(default_factory=list)
    """What was asked for, in order."""
    are_queries: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_arrive.set()

    async def load(
        self,
        references: Sequence[ImageReference],
        use: Callable[[ImageReference, bytes], Awaitable[T]],
        *,
        is_query: bool,
    ) -> list[T]:
        self.are_queries.append(is_query)
        self.loaded += [one.data or one.url or "" for one in references]
        await self.may_arrive.wait()
        return [await use(one, (one.data or one.url or "").encode()) for one in references]

    def statistics(self) -> FetchStatistics:
        return NOTHING_FETCHED


@dataclass(kw_only=True)
class SeeingEngine(FakeEngine):
    """Every file becomes four tokens of its first byte's colour."""

    refusal: Exception | None = None
    """Set: files that begin with ``broken`` are answered with it."""
    decoded_for: list[Lane] = field(default_factory=list)
    groups: list[Hashable] = field(default_factory=list)

    async def decode_image(self, file: bytes, *, lane: Lane, group: Hashable = None) -> DecodedImage:
        self.groups.append(group)
        self.decoded_for.append(lane)
        await asyncio.sleep(0)
        if file.startswith(b"broken") and self.refusal is not None:
            raise self.refusal
        return DecodedImage(pixels=np.full((56, 56, 3), file[0], dtype=np.uint8), num_tokens=4)


def seeing_engine(**options: Any) -> SeeingEngine:
    return SeeingEngine(info_=replace(INFO, images=IMAGES), **options)


def data(text: str, index: int = 0) -> ImageReference:
    return ImageReference(param=f"input[{index}].image", data=text)


def url(text: str = URL, index: int = 0) -> ImageReference:
    return ImageReference(param=f"input[{index}].image", url=text, host=text.split("/")[2])


def request(
    *images: ImageReference | None, lane: Lane = Lane.DOCUMENT, timeout_s: float = 10
) -> EmbeddingRequest:
    """One input an argument; ``None`` is a text."""
    return EmbeddingRequest(
        inputs=tuple(EmbeddingInput(text="a text" if one is None else None) for one in images),
        params=tuple(f"input[{index}]" for index in range(len(images))),
        image_references=tuple(() if one is None else (one,) for one in images),
        lane=lane,
        timeout_s=timeout_s,
    )


def intake(
    loader: FakeLoader | None = None,
    engine: FakeEngine | None = None,
    *,
    observe: Callable[..., None] = lambda *_, **__: None,
    **settings: Any,
) -> ImageIntake:
    return ImageIntake(
        cast("Any", loader or FakeLoader()),
        cast("Any", engine or seeing_engine()),
        replace(MediaSettings(), **settings),
        observe=observe,
    )


async def entered(images: ImageIntake, wanted: EmbeddingRequest) -> None:
    async with images.inputs_of(wanted):
        pass


@asynccontextmanager
async def inside(images: ImageIntake, *requests: EmbeddingRequest) -> AsyncGenerator[None]:
    """While all of these are being answered."""
    async with AsyncExitStack() as stack:
        for one in requests:
            await stack.enter_async_context(images.inputs_of(one))
        yield


@asynccontextmanager
async def under_way(*work: Awaitable[object]) -> AsyncGenerator[list["asyncio.Task[object]"]]:
    """Let all of it come as far as it can by itself; what has not ended by then is cancelled at the end."""
    tasks = [asyncio.ensure_future(one) for one in work]
    await settle()
    try:
        yield cast("Any", tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


# Images into inputs ----------------------------------------------------------------------------------------


async def test_each_image_comes_to_its_own_input_in_order():
    async with intake().inputs_of(request(data("a"), None, url())) as inputs:
        assert [[int(image.pixels[0, 0, 0]) for image in one.images] for one in inputs] == [
            [ord("a")],
            [],
            [ord("h")],
        ]
        assert inputs[1].text == "a text"


@pytest.mark.parametrize(
    ("refusal", "status", "code", "reason"),
    [
        (InvalidImageError(fault="OSError"), 400, "invalid_image", "validation"),
        (ImageMemoryError(memory_bytes=290_000_000), 400, "image_too_large", "too_long"),
        (ImageTimeoutError(timeout_s=10), 400, "image_timeout", "timeout"),
        (DecodeFailedError(num_attempts=2), 500, "image_decode_failed", "internal"),
    ],
)
async def test_an_image_that_is_not_decoded_is_told_by_the_clients_name_for_it(
    refusal: Exception, status: int, code: str, reason: str
):
    """Only what another attempt would not mend is told with 500, and then not to be tried again."""
    images = intake(engine=seeing_engine(refusal=refusal))
    with pytest.raises(InputFailedError) as failed:
        await entered(images, request(data("a"), data("broken", index=1)))
    explanation = explain(failed.value)
    assert explanation.error.param == "input[1].image"
    assert (explanation.status, explanation.error.code, explanation.reason) == (status, code, reason)
    assert explanation.headers.get("x-should-retry") == ("false" if status == 500 else None)
    assert images.statistics().held_bytes == 0


async def test_a_decoder_that_is_gone_is_our_fault_and_worth_another_try():
    failure = DecoderUnavailableError("the image decoder is not open")
    with pytest.raises(DecoderUnavailableError) as failed:
        await entered(intake(engine=seeing_engine(refusal=failure)), request(data("broken")))
    explanation = explain(failed.value)
    assert (explanation.status, explanation.error.code) == (503, "image_decoder_unavailable")


async def test_why_an_image_was_refused_is_logged_and_not_what_was_in_it(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="app.media")
    for refusal in (InvalidImageError(fault="OSError"), ImageTimeoutError(timeout_s=10)):
        with pytest.raises(InputFailedError):
            await entered(intake(engine=seeing_engine(refusal=refusal)), request(data("broken secret")))
    assert caplog.messages == [
        "an image was not decoded: InvalidImageError (OSError)",
        "an image was not decoded: ImageTimeoutError",
    ]


async def test_loading_and_decoding_are_timed_apart():
    told: list[tuple[str, Lane]] = []
    images = intake(observe=lambda stage, _seconds, lane: told.append((stage, lane)))
    await entered(images, request(data("a")))
    assert told == [("fetch", Lane.DOCUMENT), ("decode", Lane.DOCUMENT)]


# Memory ----------------------------------------------------------------------------------------------------


async def test_while_a_request_is_answered_its_pixels_count_and_its_files_do_not():
    images = intake()
    async with inside(images, request(data("a"), data("b"))):
        assert images.statistics().held_bytes == 2 * 56 * 56 * 3
    assert images.statistics().held_bytes == 0


async def test_a_request_promises_its_base64_and_the_most_that_pixels_may_take_before_anything_is_loaded():
    """What a URL leads to is bounded by the places for fetches."""
    loader = FakeLoader()
    loader.may_arrive.clear()
    images = intake(loader)
    async with under_way(entered(images, request(data("a" * 4_000), url()))):
        assert images.statistics().held_bytes == 3_003 + 2 * PIXEL_BYTES
    assert images.statistics().held_bytes == 0


def test_files_in_base64_are_promised_by_their_length_and_never_more_than_a_request_may_have():
    settings = MediaSettings(max_request_image_bytes=5_000)
    skipped = ImageReference(param="input", data="data:image/png;base64," + "A" * 400, data_start=22)
    assert file_bytes([skipped], settings) == 303
    assert file_bytes([data("A" * 4_000), url()], settings) == 3_003
    assert file_bytes([data("A" * 4_000)] * 2, settings) == 5_000
    assert pixel_bytes(IMAGES) == PIXEL_BYTES


async def test_a_request_waits_for_room_and_goes_on_when_another_is_answered():
    images = intake(max_held_image_bytes=2 * PIXEL_BYTES)
    held = data("A" * 56 * 56 * 4)
    async with AsyncExitStack() as first:
        await first.enter_async_context(images.inputs_of(request(data("a"), data("b"))))
        second = asyncio.create_task(entered(images, request(*[held] * 2)))
        await settle()
        assert not second.done()
        assert images.statistics().num_waiting_others == 1
    await second
    assert images.statistics().num_waiting_others == 0


async def test_a_query_waits_for_no_document_and_documents_for_no_query():
    """Each side has room of its own, so a stream of queries starves no upload."""
    loader = FakeLoader()
    loader.may_arrive.clear()
    images = intake(loader, max_held_image_bytes=8 * PIXEL_BYTES)
    documents = [entered(images, request(*[data("a")] * 7)) for _ in range(2)]
    queries = [entered(images, request(data("q"), lane=Lane.QUERY)) for _ in range(3)]
    async with under_way(*documents, *queries):
        assert loader.loaded == ["a"] * 7 + ["q"]
        assert images.statistics().num_waiting_others == 1
        assert images.statistics().num_waiting_queries == 2


async def test_images_of_the_batch_lane_leave_documents_half_of_the_room():
    """They hold it for as long as their inputs wait, which is minutes, and documents came to wait behind them."""
    loader = FakeLoader()
    loader.may_arrive.clear()
    images = intake(loader, max_held_image_bytes=8 * PIXEL_BYTES)
    batch = [entered(images, request(*[data("b")] * 2, lane=Lane.BATCH)) for _ in range(3)]
    document = entered(images, request(*[data("d")] * 3))
    async with under_way(*batch, document):
        assert loader.loaded == ["b", "b", "d", "d", "d"]
        assert images.statistics().num_waiting_others == 2
        loader.may_arrive.set()
        await settle()
        assert images.statistics().held_bytes == 0
    assert loader.loaded.count("b") == 6


async def test_a_batch_larger_than_its_part_is_let_in_alone():
    images = intake(max_held_image_bytes=8 * PIXEL_BYTES)
    await asyncio.wait_for(entered(images, request(*[data("b")] * 7, lane=Lane.BATCH)), 10)
    assert images.statistics().held_bytes == 0


async def test_a_query_of_dozens_of_images_waits_among_the_uploads():
    """Among queries it would find room only when there are no others, and all that come would wait behind it."""
    loader = FakeLoader()
    loader.may_arrive.clear()
    images = intake(loader, max_held_image_bytes=8 * PIXEL_BYTES)
    document = entered(images, request(*[data("d")] * 2))
    large, small = (entered(images, request(*[data("q")] * number, lane=Lane.QUERY)) for number in (7, 1))
    async with under_way(document, large, small):
        assert loader.loaded == ["d", "d", "q"]
        assert (images.statistics().num_waiting_queries, images.statistics().num_waiting_others) == (0, 1)
        loader.may_arrive.set()
        await settle()
    assert loader.loaded == ["d", "d", "q", *["q"] * 7]


async def test_who_gives_up_waiting_leaves_no_trace():
    images = intake(max_held_image_bytes=PIXEL_BYTES + 100)
    async with inside(images, request(data("a"))):
        async with under_way(entered(images, request(data("A" * 4 * 56 * 56)))) as [waiting]:
            assert not waiting.done()
        assert images.statistics().num_waiting_others == 0
    assert images.statistics().held_bytes == 0
    await asyncio.wait_for(entered(images, request(data("a"))), timeout=3)


# Turns to fetch --------------------------------------------------------------------------------------------


async def test_a_url_has_no_room_before_its_turn_to_be_fetched():
    """Promises cost a stranger nothing: sixty of slow hosts filled the room, and everybody waited."""
    loader = FakeLoader()
    loader.may_arrive.clear()
    images = intake(loader, max_fetches=3, max_fetches_per_host=2)
    slow = [entered(images, request(url(), lane=Lane.QUERY)) for _ in range(60)]
    async with under_way(*slow):
        assert images.statistics().held_bytes == 2 * (PIXEL_BYTES)
        assert images.statistics().num_waiting_queries == 58
        other_host = entered(images, request(url("http://fast.test/"), lane=Lane.QUERY))
        in_base64 = entered(images, request(data("q"), lane=Lane.QUERY))
        document = entered(images, request(url()))
        async with under_way(other_host, in_base64, document):
            assert loader.loaded == [URL, URL, "http://fast.test/", "q", URL]
            loader.may_arrive.set()
            await settle()
    assert images.statistics().held_bytes == 0


async def test_a_turn_ends_with_loading_and_not_with_the_answer():
    images = intake(max_fetches=1)
    async with inside(images, request(url()), request(url())):
        assert images.statistics().held_bytes == 2 * 56 * 56 * 3


# Waiting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [Lane.QUERY, Lane.DOCUMENT])
async def test_only_so_many_requests_wait_for_a_turn_and_the_rest_are_told_to_come_back(
    lane: Lane, monkeypatch
):
    monkeypatch.setattr(media, "MAX_WAITING_REQUESTS", 2)
    loader = FakeLoader()
    loader.may_arrive.clear()
    images = intake(loader, max_fetches=2, max_fetches_per_host=1)
    async with under_way(*[entered(images, request(url(), lane=lane)) for _ in range(3)]):
        with pytest.raises(ImageQueueFullError) as refused:
            await entered(images, request(url(), lane=lane))
        explanation = explain(refused.value)
        assert (explanation.status, explanation.error.code) == (429, "queue_full")
        assert explanation.error.message == (
            f"The images of 2 requests are waiting already; 2 may wait in the {lane} lane."
        )
        assert int(explanation.headers["retry-after"]) >= 1
        # Who need not wait is none too many.
        loader.may_arrive.set()
        await entered(images, request(url("http://fast.test/"), lane=lane))


async def test_only_so_many_requests_wait_for_room(monkeypatch):
    monkeypatch.setattr(media, "MAX_WAITING_REQUESTS", 1)
    images = intake(max_held_image_bytes=2 * PIXEL_BYTES)
    large = request(data("A" * 4 * 56 * 56 * 3), data("a"))
    async with inside(images, request(data("a"), data("a"))), under_way(entered(images, large)):
        with pytest.raises(ImageQueueFullError):
            await entered(images, large)


async def test_a_query_is_told_to_come_back_before_its_client_gives_up(monkeypatch):
    monkeypatch.setattr(media, "MAX_QUERY_WAIT_S", 0.02)
    loader = FakeLoader()
    loader.may_arrive.clear()
    images = intake(loader, max_fetches=1)
    slow_query, slow_document = (
        entered(images, request(url(), lane=lane)) for lane in (Lane.QUERY, Lane.DOCUMENT)
    )
    async with under_way(slow_query, slow_document, entered(images, request(url()))) as [*_, document]:
        with pytest.raises(ImageQueueFullError, match=r"had no turn within 0.02 seconds"):
            await entered(images, request(url(), lane=Lane.QUERY))
        assert not document.done()
        assert images.statistics().num_waiting_queries == 0


async def test_a_full_line_is_told_over_http_with_what_room_there_is(monkeypatch):
    monkeypatch.setattr(media, "MAX_WAITING_REQUESTS", 0)
    gateway = Gateway(seeing_engine())
    answer = await gateway.embed({"image": "AAAA"})
    assert (answer.status, answer.error["code"]) == (429, "queue_full")
    assert {"retry-after", "retry-after-ms", "x-ratelimit-remaining-requests"} <= set(answer.headers)
    assert gateway.sample("laneway_request_failures_total", reason="overloaded") == 1


# Embedding with images -------------------------------------------------------------------------------------


def embedding(engine: FakeEngine, images: ImageIntake, wanted: EmbeddingRequest) -> Any:
    return embed_with_images(cast("Engine", engine), images, wanted)


@pytest.mark.parametrize("lane", Lane)
async def test_an_image_is_loaded_and_decoded_in_its_requests_lane(lane: Lane):
    loader, engine = FakeLoader(), seeing_engine()
    answer = await embedding(engine, intake(loader, engine), request(data("a"), None, lane=lane))
    assert answer.modalities == ("image", "text")
    assert engine.decoded_for == [lane]
    assert loader.are_queries == [lane is Lane.QUERY]
    assert [call.lane for call in engine.calls] == [lane]


async def test_what_loading_took_is_taken_from_the_requests_time():
    loader, engine = FakeLoader(), seeing_engine()
    loader.may_arrive.clear()
    asyncio.get_running_loop().call_later(0.05, loader.may_arrive.set)
    await embedding(engine, intake(loader, engine), request(data("a"), timeout_s=10))
    [call] = engine.calls
    assert call.timeout_s is not None
    assert 5 < call.timeout_s <= 9.95


async def test_a_text_has_all_of_its_time():
    engine = seeing_engine()
    await embedding(engine, intake(engine=engine), request(None, timeout_s=10))
    assert [call.timeout_s for call in engine.calls] == [10]


async def test_images_that_do_not_come_in_time_are_a_missed_deadline_and_hold_nothing():
    loader = FakeLoader()
    loader.may_arrive.clear()
    engine = seeing_engine()
    images = intake(loader, engine)
    with pytest.raises(DeadlineError):
        await embedding(engine, images, request(data("a"), timeout_s=0.01))
    assert images.statistics().held_bytes == 0
    assert engine.calls == []


async def test_another_timeout_is_no_missed_deadline():
    """It would be told as the client's haste, and be some bug of ours."""
    engine = seeing_engine(refusal=TimeoutError("of something else"))
    with pytest.raises(TimeoutError, match="of something else"):
        await embedding(engine, intake(engine=engine), request(data("broken")))


async def test_pixels_are_held_until_the_answer():
    engine = seeing_engine(hold=asyncio.Event())
    images = intake(engine=engine)
    async with under_way(embedding(engine, images, request(data("a")))) as [answering]:
        await engine.started.wait()
        assert images.statistics().held_bytes == 56 * 56 * 3
        assert engine.hold is not None
        engine.hold.set()
        await answering
    assert images.statistics().held_bytes == 0


async def test_a_request_whose_images_are_on_their_way_is_answered_while_the_server_stops():
    loader, engine = FakeLoader(), seeing_engine()
    loader.may_arrive.clear()
    images = intake(loader, engine)
    async with under_way(embedding(engine, images, request(data("a")))) as [answering]:
        engine.stage = "draining"
        loader.may_arrive.set()
        assert (await cast("Any", answering)).num_images == 1
        assert (await Gateway(engine).embed({"image": "AAAA"})).status == 503

"""Images of requests in flight stay within one bound on memory, and nobody waits for ever."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import numpy as np
import pytest

from app.errors import InvalidRequestError
from app.images import ImageReference
from app.inputs import EmbeddingRequest
from app.media import ImageIntake, ImageRoom
from app.settings import MediaSettings
from batching import Lane
from model import DecodedImage, EmbeddingInput, ImageInputs, ImageSpec, ImageTokens
from model.errors import InvalidImageError
from model.images.spec import ResizeRule
from tests.app.fakes import INFO

SPEC = ImageSpec(patch_size=14, merge_size=2, resizes=(ResizeRule(min_tokens=4, max_tokens=16),))
IMAGES = ImageInputs(
    spec=SPEC, tokens=ImageTokens(start=(1,), pad=2, end=(3,)), max_images=1, is_fused_with_text=True
)
PIXEL_BYTES = 16 * 28 * 28 * 3


class FakeLoader:
    async def load(self, references: Sequence[ImageReference]) -> list[bytes]:
        return [(one.data or one.url or "").encode() for one in references]


class FakeDecoder:
    """Every file becomes four tokens of its first byte's colour; ``broken`` is no image."""

    info = dataclasses.replace(INFO, images=IMAGES)

    def __init__(self) -> None:
        self.lanes: list[Lane] = []

    async def decode_image(self, file: bytes, *, lane: Lane) -> DecodedImage:
        self.lanes.append(lane)
        await asyncio.sleep(0)
        if file == b"broken":
            raise InvalidImageError
        return DecodedImage(pixels=np.full((56, 56, 3), file[0], dtype=np.uint8), num_tokens=4)


def request(*images: str | None, lane: Lane = Lane.DOCUMENT) -> EmbeddingRequest:
    """One input an argument; ``None`` is a text."""
    return EmbeddingRequest(
        inputs=tuple(EmbeddingInput(text="a text" if one is None else None) for one in images),
        params=tuple(f"input[{index}]" for index in range(len(images))),
        image_references=tuple(
            () if one is None else (ImageReference(param=f"input[{index}].image", data=one),)
            for index, one in enumerate(images)
        ),
        lane=lane,
        timeout_s=10,
    )


def intake(**settings: object) -> ImageIntake:
    return intake_with(FakeLoader(), dataclasses.replace(MediaSettings(), **settings))  # type: ignore[arg-type]


def intake_with(
    loader: FakeLoader, settings: MediaSettings, *, observe: Callable[[str, float], None] = lambda *_: None
) -> ImageIntake:
    return ImageIntake(loader, FakeDecoder(), settings, observe=observe)  # type: ignore[arg-type]


async def test_each_image_comes_to_its_own_input_in_order():
    async with intake().inputs_of(request("a", None, "b")) as inputs:
        assert [[int(image.pixels[0, 0, 0]) for image in one.images] for one in inputs] == [
            [ord("a")],
            [],
            [ord("b")],
        ]
        assert inputs[1].text == "a text"


async def test_a_broken_image_is_refused_by_the_clients_name_for_it_and_holds_nothing():
    images = intake()
    with pytest.raises(InvalidRequestError) as refusal:
        async with images.inputs_of(request("a", "broken")):
            pass
    assert (refusal.value.param, refusal.value.code) == ("input[1].image", "invalid_image")
    assert images.room.held_bytes == 0


async def test_while_a_request_is_answered_its_pixels_count_and_its_files_do_not():
    images = intake()
    async with images.inputs_of(request("a", "b")):
        assert images.room.held_bytes == 2 * 56 * 56 * 3
    assert images.room.held_bytes == 0


async def test_a_request_promises_the_most_that_its_images_may_take_before_anything_is_loaded():
    held: list[int] = []

    class WatchingLoader(FakeLoader):
        async def load(self, references: Sequence[ImageReference]) -> list[bytes]:
            held.append(images.room.held_bytes)
            return await super().load(references)

    images = intake_with(WatchingLoader(), MediaSettings(max_image_bytes=1000))
    wanted = request("abc", "abc")
    url = (ImageReference(param="input[1]", url="http://images.test/"),)
    async with images.inputs_of(
        dataclasses.replace(wanted, image_references=(wanted.image_references[0], url))
    ):
        pass
    assert held == [3 + 1000 + 2 * PIXEL_BYTES]


async def test_a_request_waits_for_room_and_goes_on_when_another_is_answered():
    images = intake(max_held_image_bytes=PIXEL_BYTES)
    async with AsyncExitStack() as first:
        await first.enter_async_context(images.inputs_of(request("a" * 10)))
        second = asyncio.create_task(entered(images, request("b" * PIXEL_BYTES)))
        await settle()
        assert not second.done()
    await second


async def entered(images: ImageIntake, wanted: EmbeddingRequest) -> None:
    async with images.inputs_of(wanted):
        pass


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# The room ----------------------------------------------------------------------------------------------------


async def test_more_than_the_whole_room_is_let_into_an_empty_one():
    """Or such a request could never be served."""
    room = ImageRoom(100)
    await room.take(1_000, is_query=False)
    assert room.held_bytes == 1_000


async def test_a_query_passes_the_documents_that_wait():
    room = ImageRoom(100)
    await room.take(100, is_query=False)
    document = asyncio.create_task(room.take(50, is_query=False))
    await settle()
    await asyncio.wait_for(room.take(25, is_query=True), 1)
    assert not document.done()
    room.give(100)
    await document
    assert room.held_bytes == 75


async def test_queries_have_a_bound_too_and_keep_their_order():
    room = ImageRoom(100)
    await room.take(100, is_query=False)
    await room.take(25, is_query=True)
    order: list[str] = []

    async def query(name: str) -> None:
        await room.take(25, is_query=True)
        order.append(name)

    waiting = [asyncio.create_task(query("first")), asyncio.create_task(query("second"))]
    await settle()
    assert order == []
    room.give(25)
    await settle()
    assert order == ["first"]
    room.give(100)
    await asyncio.gather(*waiting)
    assert order == ["first", "second"]


async def test_who_gives_up_waiting_leaves_no_trace():
    room = ImageRoom(100)
    await room.take(100, is_query=False)
    large = asyncio.create_task(room.take(90, is_query=False))
    small = asyncio.create_task(room.take(10, is_query=False))
    await settle()
    large.cancel()
    room.give(50)
    await small
    with pytest.raises(asyncio.CancelledError):
        await large
    assert room.held_bytes == 60


async def test_room_made_in_the_moment_of_giving_up_goes_to_the_next():
    room = ImageRoom(100)
    await room.take(100, is_query=False)
    first = asyncio.create_task(room.take(100, is_query=False))
    second = asyncio.create_task(room.take(100, is_query=False))
    await settle()
    room.give(100)
    first.cancel()
    await second
    assert first.cancelled()
    assert room.held_bytes == 100


async def test_loading_and_decoding_are_timed_apart():
    told: list[str] = []
    images = intake_with(FakeLoader(), MediaSettings(), observe=lambda stage, _seconds: told.append(stage))
    async with images.inputs_of(request("a")):
        pass
    assert told == ["load_images", "decode_images"]

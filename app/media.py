"""The images of a request: from references to pixels in its inputs, within bounds on memory.

Laws: turns to fetch, room and places for fetches are waited for in this order, and given back without
waiting, so nobody waits in a circle. Queries have all three of their own: a query waits behind other queries
only, and never long. The batch lane's inputs may wait for minutes before they run. So its images hold half of
the room at most, unless one request needs more, and wait in lines of their own. What is promised is promised
late: a URL costs its sender nothing, so its pixels are given room only when it is its turn to be fetched.

What images hold is counted in three places. As they come, in base64, they are parts of bodies
(``max_held_body_bytes``). Fetched files are as many as there are places for fetches, each of at most
``max_image_bytes``. What was decoded, from base64 or into pixels, is counted here (``max_held_image_bytes``).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol, TypeVar

from app.engine import Embeddings, Engine
from app.errors import ImageQueueFullError, InputFailedError
from app.facts import note_stage
from app.fetch import FetchStatistics
from app.images import ImageLoader, ImageReference
from app.inputs import EmbeddingRequest
from app.places import Places
from app.room import Room
from app.settings import MediaSettings
from batching import DeadlineError, Lane
from model import (
    CheckpointError,
    DecodedImage,
    EmbeddingInput,
    ImageError,
    ImageInputs,
    InvalidImageError,
    ModelInfo,
)
from model.images import DecoderStatistics

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_WAITING_REQUESTS = 1_024
"""Requests that may wait for the same thing, queries or others; each holds its body."""
MAX_QUERY_WAIT_S = 10.0
"""A query that waited so long waits behind slow hosts of other queries, which will not become faster."""


class Decoder(Protocol):
    """What turns files into pixels; the engine."""

    @property
    def info(self) -> ModelInfo:
        """The served model."""
        ...

    def decoder_statistics(self) -> DecoderStatistics | None:
        """What the decode processes have done; ``None`` while there are none."""
        ...

    async def decode_image(self, file: bytes, *, lane: Lane, group: Hashable = None) -> DecodedImage:
        """Decode one image file.

        Raises:
            ImageError: It is no image that can be decoded.
        """
        ...


class ObserveStage(Protocol):
    """Told how long a request spent on one part of its way."""

    def __call__(self, stage: str, duration_s: float, *, lane: Lane) -> None:
        """It spent so long on that one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStatistics:
    """What became of images, and how much memory they hold, read at any time."""

    held_bytes: int
    """Held by requests in flight, or promised to them; fetched files apart."""
    held_query_bytes: int
    """What of it is in the queries' own room."""
    max_held_query_bytes: int
    max_held_other_bytes: int
    num_waiting_queries: int
    """Requests of the query lane that wait for a turn to fetch or for room."""
    num_waiting_others: int
    fetches: FetchStatistics
    decoder: DecoderStatistics | None
    """``None``: the model is not loaded, or reads no images."""


# Waiting ---------------------------------------------------------------------------------------------------


class WaitingLine:
    """Requests that wait for the same thing: only so many, and where it matters only so long."""

    def __init__(self, *, max_wait_s: float | None) -> None:
        """Begin without anybody.

        Args:
            max_wait_s: Whoever waits longer is sent away. ``None``: for as long as the request is worth it.
        """
        self._max_wait_s = max_wait_s
        self._last_wait_s = 0.0
        self.num_waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether nobody more may wait."""
        return self.num_waiting >= MAX_WAITING_REQUESTS

    async def wait(self, turn: Callable[[], Awaitable[T]], *, lane: Lane) -> T:
        """Wait until the turn has come.

        Raises:
            ImageQueueFullError: Too many wait already, or it took too long.
        """
        if self.is_full:
            raise self.refusal(lane)
        began_s = monotonic()
        self.num_waiting += 1
        limit = asyncio.timeout(self._max_wait_s)
        try:
            async with limit:
                return await turn()
        except TimeoutError:
            if limit.expired():
                raise ImageQueueFullError(
                    lane,
                    f"the images of the {lane} had no turn within {self._max_wait_s:g} seconds, because of "
                    "those of other requests",
                    retry_after_s=monotonic() - began_s,
                ) from None
            raise
        finally:
            self.num_waiting -= 1
            self._last_wait_s = monotonic() - began_s

    def refusal(self, lane: Lane) -> ImageQueueFullError:
        """What is told to whoever may not wait."""
        return ImageQueueFullError(
            lane,
            f"the images of {self.num_waiting} requests are waiting already; {MAX_WAITING_REQUESTS} may wait "
            f"in the {lane} lane",
            # As long as the one waited that came in last.
            retry_after_s=max(1.0, self._last_wait_s),
        )


class _Side:
    """What the images of a lane wait for."""

    def __init__(self, *, room: Room, turns: Places, max_wait_s: float | None = None) -> None:
        self.room = room
        self.turns = turns
        """Of requests with URLs; documents and the batch lane share theirs."""
        self.for_room = WaitingLine(max_wait_s=max_wait_s)
        self.for_turn = WaitingLine(max_wait_s=max_wait_s)

    @property
    def num_waiting(self) -> int:
        return self.for_room.num_waiting + self.for_turn.num_waiting


@dataclass(slots=True, kw_only=True, eq=False)
class _Share:
    """What one request holds of a room."""

    room: Room
    num_bytes: int

    def shrink_to(self, num_bytes: int) -> None:
        """Give the rest back."""
        self.room.give(self.num_bytes - num_bytes)
        self.num_bytes = num_bytes


# How much --------------------------------------------------------------------------------------------------


def check_room(settings: MediaSettings, info: ModelInfo) -> None:
    """Refuse a model and settings with which an allowed request would never find room.

    Raises:
        CheckpointError: There is less room than the largest request takes.
    """
    if info.images is None:
        return
    from_base64 = min(settings.max_images * settings.max_image_bytes, settings.max_request_image_bytes)
    largest = from_base64 + settings.max_images * pixel_bytes(info.images)
    if largest > settings.max_held_image_bytes:
        raise CheckpointError(
            f"max_held_image_bytes is {settings.max_held_image_bytes}, but {settings.max_images} images "
            f"(max_images) of this model may take {largest} bytes; raise the one or lower the other"
        )


def pixel_bytes(images: ImageInputs) -> int:
    """The most that one decoded image may have."""
    return images.spec.max_tokens * images.spec.token_side**2 * 3


def turns_of(settings: MediaSettings) -> Places:
    """As many turns as there are fetches, so that nobody who cannot fetch is promised room."""
    return Places(max_taken=settings.max_fetches, max_taken_per_host=settings.max_fetches_per_host)


def file_bytes(references: Sequence[ImageReference], settings: MediaSettings) -> int:
    """The most that the files may have that came in base64."""
    num_bytes = sum(one.data_chars // 4 * 3 + 3 for one in references if one.data is not None)
    return min(num_bytes, settings.max_request_image_bytes)


# Images into inputs ----------------------------------------------------------------------------------------


class ImageIntake:
    """Loads and decodes the images of requests."""

    def __init__(
        self,
        loader: ImageLoader,
        decoder: Decoder,
        settings: MediaSettings,
        *,
        observe: ObserveStage,
    ) -> None:
        """Join what loads images and what decodes them.

        Args:
            loader: Turns references into files.
            decoder: Turns files into pixels.
            settings: How much memory there is, and how many fetches.
            observe: Told how long a request took to ``fetch`` its images, and then to ``decode`` them.
        """
        self._loader = loader
        self._decoder = decoder
        self._settings = settings
        self._observe = observe
        # On top of the setting: one image is 3 MB, and never waits for an upload.
        self._queries = _Side(
            room=Room(settings.max_held_image_bytes // 4),
            turns=turns_of(settings),
            max_wait_s=MAX_QUERY_WAIT_S,
        )
        self._documents = _Side(room=Room(settings.max_held_image_bytes), turns=turns_of(settings))
        self._batch = _Side(
            room=Room(settings.max_held_image_bytes // 2, within=self._documents.room),
            turns=self._documents.turns,
        )

    def statistics(self) -> ImageStatistics:
        """A snapshot."""
        return ImageStatistics(
            held_bytes=self._queries.room.held_bytes + self._documents.room.held_bytes,
            held_query_bytes=self._queries.room.held_bytes,
            max_held_query_bytes=self._queries.room.max_bytes,
            max_held_other_bytes=self._documents.room.max_bytes,
            num_waiting_queries=self._queries.num_waiting,
            num_waiting_others=self._documents.num_waiting + self._batch.num_waiting,
            fetches=self._loader.statistics(),
            decoder=self._decoder.decoder_statistics(),
        )

    @asynccontextmanager
    async def inputs_of(self, wanted: EmbeddingRequest) -> AsyncGenerator[tuple[EmbeddingInput, ...]]:
        """The request's inputs with their images, whose pixels count as held until the block ends.

        Raises:
            InvalidRequestError: An image cannot be had; ``param`` says which.
            InputFailedError: An image cannot be decoded; ``param`` says which.
            ImageQueueFullError: Others wait already, too many or for too long.
        """
        references = [one for of_input in wanted.image_references for one in of_input]
        async with AsyncExitStack() as held:
            async with AsyncExitStack() as turn:
                await self._take_turn(turn, references, wanted.lane)
                share = await self._take_room(references, wanted.lane)
                held.callback(share.shrink_to, 0)
                images = await self._load(references, wanted.lane)
            # Most images are smaller than they may be, and nobody needs their files any more.
            share.shrink_to(sum(image.pixels.nbytes for image in images))
            rest = iter(images)
            yield tuple(
                replace(one, images=tuple(next(rest) for _ in of_input)) if of_input else one
                for one, of_input in zip(wanted.inputs, wanted.image_references, strict=True)
            )

    async def _take_turn(
        self, turn: AsyncExitStack, references: Sequence[ImageReference], lane: Lane
    ) -> None:
        """Wait until the request may fetch, if it has to; ``turn`` is left holding that."""
        # Of most requests all URLs lead to one host.
        host = next((one.host for one in references if one.url is not None), None)
        if host is None:
            return
        side = self._side(lane)
        place = side.turns.take(host)
        if side.turns.is_free(host):  # however many wait for other hosts
            await turn.enter_async_context(place)
        else:
            await side.for_turn.wait(lambda: turn.enter_async_context(place), lane=lane)

    async def _take_room(self, references: Sequence[ImageReference], lane: Lane) -> _Share:
        images = self._decoder.info.images
        assert images is not None, "only a model that reads images is handed some"
        num_bytes = file_bytes(references, self._settings) + len(references) * pixel_bytes(images)
        side = self._side(lane)
        if lane is Lane.QUERY and num_bytes > side.room.max_bytes:
            # A query of dozens of images waits among the uploads, which it is one of.
            side = self._documents
        await side.for_room.wait(lambda: side.room.take(num_bytes), lane=lane)
        return _Share(room=side.room, num_bytes=num_bytes)

    def _side(self, lane: Lane) -> _Side:
        match lane:
            case Lane.QUERY:
                return self._queries
            case Lane.DOCUMENT:
                return self._documents
            case Lane.BATCH:
                return self._batch

    async def _load(self, references: Sequence[ImageReference], lane: Lane) -> list[DecodedImage]:
        began_s = loaded_s = monotonic()
        group = object()

        async def decode(reference: ImageReference, file: bytes) -> DecodedImage:
            nonlocal loaded_s
            loaded_s = monotonic()
            try:
                return await self._decoder.decode_image(file, lane=lane, group=group)
            except ImageError as error:
                logger.info("an image was not decoded: %s", describe(error))
                raise InputFailedError(reference.param, error) from error

        images = await self._loader.load(references, decode, is_query=lane is Lane.QUERY)
        decoded_s = monotonic()
        self._observe("fetch", loaded_s - began_s, lane=lane)
        self._observe("decode", decoded_s - loaded_s, lane=lane)
        note_stage("fetch", began_s, loaded_s)
        note_stage("decode", loaded_s, decoded_s)
        return images


def describe(error: ImageError) -> str:
    """Why an image was refused, for the log: nothing of the file but what kind of fault it had."""
    fault = error.fault if isinstance(error, InvalidImageError) else ""
    return f"{type(error).__name__} ({fault})" if fault else type(error).__name__


async def embed_with_images(
    engine: Engine, intake: ImageIntake, wanted: EmbeddingRequest, *, tenant: str = ""
) -> Embeddings:
    """Embed the inputs of a request, its images included; its time runs from the first image on.

    Args:
        engine: The served model.
        intake: Loads and decodes the images.
        wanted: The request.
        tenant: On whose behalf; those who wait in a lane get equal parts of its time.

    Raises:
        EngineNotReadyError: The model is loading or draining. Later on the request is not refused for that.
        InvalidRequestError: An image cannot be had.
        InputFailedError: An image cannot be decoded.
        ImageQueueFullError: The images of too many other requests come first.
        DeadlineError: The images were not there in time.
        Exception: What ``Engine.embed`` raises.
    """
    with engine.admitted():
        if not any(wanted.image_references):
            return await engine.embed(
                wanted.inputs, lane=wanted.lane, timeout_s=wanted.timeout_s, tenant=tenant
            )
        began_s = monotonic()
        async with AsyncExitStack() as images:
            limit = asyncio.timeout(wanted.timeout_s)
            try:
                async with limit:
                    inputs = await images.enter_async_context(intake.inputs_of(wanted))
            except TimeoutError:
                if not limit.expired():
                    raise
                raise DeadlineError(waited_s=monotonic() - began_s) from None
            remaining_s = wanted.timeout_s - (monotonic() - began_s)
            return await engine.embed(inputs, lane=wanted.lane, timeout_s=remaining_s, tenant=tenant)

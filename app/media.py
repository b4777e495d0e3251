"""The images of a request: from references to pixels in its inputs, within one bound on memory.

Laws: an image's memory is promised before it is fetched and given back when its request is answered, so that
however many requests come at once, images hold no more than the setting ``max_held_image_bytes``. Requests
wait for room in the order they came; a query waits behind other queries only.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

from app.engine import Embeddings, Engine
from app.errors import InvalidRequestError
from app.fetch import FetchStatistics
from app.images import ImageLoader, ImageReference
from app.inputs import EmbeddingRequest
from app.settings import MediaSettings
from batching import DeadlineError, Lane
from model import DecodedImage, EmbeddingInput, ImageError, ImageMemoryError, ImageTooLargeError, ModelInfo
from model.images import DecoderStatistics

_QUERY_ROOM = 1.25
"""Queries may fill the room a quarter beyond what other requests may: one image is 3 MB, and never waits for
an upload."""


class Decoder(Protocol):
    """What turns files into pixels; the engine."""

    @property
    def info(self) -> ModelInfo:
        """The served model."""
        ...

    def decoder_statistics(self) -> DecoderStatistics | None:
        """What the decode processes have done; ``None`` while there are none."""
        ...

    async def decode_image(self, file: bytes, *, lane: Lane) -> DecodedImage:
        """Decode one image file.

        Raises:
            ImageError: It is no image that can be decoded.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Turn:
    num_bytes: int
    is_query: bool
    has_come: asyncio.Future[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStatistics:
    """What became of images, and how much memory they hold, read at any time."""

    held_bytes: int
    """Held by requests in flight, or promised to them."""
    fetches: FetchStatistics
    decoder: DecoderStatistics | None
    """``None``: the model is not loaded, or reads no images."""


class ImageRoom:
    """Owns the count of bytes that images of requests in flight may hold."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._waiting: deque[_Turn] = deque()

    def __repr__(self) -> str:
        """How full it is."""
        return f"<ImageRoom {self._held_bytes} of {self._max_bytes} bytes, {len(self._waiting)} waiting>"

    @property
    def held_bytes(self) -> int:
        """Bytes that are promised or held at this moment."""
        return self._held_bytes

    async def take(self, num_bytes: int, *, is_query: bool) -> None:
        """Return when there is room, and it has been taken. More than all of it is given an empty room."""
        turn = _Turn(
            num_bytes=num_bytes,
            is_query=is_query,
            has_come=asyncio.get_running_loop().create_future(),
        )
        num_ahead = sum(one.is_query for one in self._waiting) if is_query else len(self._waiting)
        self._waiting.insert(num_ahead, turn)
        self._admit()
        try:
            await turn.has_come
        except asyncio.CancelledError:
            if turn.has_come.cancelled():
                self._admit()
            else:  # room was made and the caller cancelled in the same moment
                self.give(num_bytes)
            raise

    def give(self, num_bytes: int) -> None:
        """Give room back."""
        self._held_bytes -= num_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            turn = self._waiting[0]
            if turn.has_come.cancelled():
                self._waiting.popleft()
                continue
            max_bytes = self._max_bytes * (_QUERY_ROOM if turn.is_query else 1)
            if self._held_bytes and self._held_bytes + turn.num_bytes > max_bytes:
                return
            self._waiting.popleft()
            self._held_bytes += turn.num_bytes
            turn.has_come.set_result(None)


class ImageIntake:
    """Loads and decodes the images of requests."""

    def __init__(
        self,
        loader: ImageLoader,
        decoder: Decoder,
        settings: MediaSettings,
        *,
        observe: Callable[[str, float], None],
    ) -> None:
        """Join what loads images and what decodes them.

        Args:
            loader: Turns references into files.
            decoder: Turns files into pixels.
            settings: How much memory there is for both.
            observe: Told the seconds that the images of a request took to ``load`` and to ``decode``.
        """
        self._loader = loader
        self._decoder = decoder
        self._settings = settings
        self._observe = observe
        self.room = ImageRoom(settings.max_held_image_bytes)

    def statistics(self) -> ImageStatistics:
        """A snapshot."""
        return ImageStatistics(
            held_bytes=self.room.held_bytes,
            fetches=self._loader.statistics(),
            decoder=self._decoder.decoder_statistics(),
        )

    @asynccontextmanager
    async def inputs_of(self, wanted: EmbeddingRequest) -> AsyncGenerator[tuple[EmbeddingInput, ...]]:
        """The request's inputs with their images, which count as held until the block ends.

        Raises:
            InvalidRequestError: An image cannot be had or decoded; ``param`` says which.
        """
        references = [one for of_input in wanted.image_references for one in of_input]
        is_query = wanted.lane is Lane.QUERY
        num_held = self._file_bytes(references) + len(references) * self._pixel_bytes()
        await self.room.take(num_held, is_query=is_query)
        try:
            started_s = monotonic()
            files = await self._loader.load(references)
            loaded_s = monotonic()
            images = await self._decoded(references, files, wanted.lane)
            self._observe("load_images", loaded_s - started_s)
            self._observe("decode_images", monotonic() - loaded_s)
            # Most images are smaller than they may be, and nobody needs their files any more.
            del files
            num_kept = sum(image.pixels.nbytes for image in images)
            self.room.give(num_held - num_kept)
            num_held = num_kept
            rest = iter(images)
            yield tuple(
                replace(one, images=tuple(next(rest) for _ in of_input)) if of_input else one
                for one, of_input in zip(wanted.inputs, wanted.image_references, strict=True)
            )
        finally:
            self.room.give(num_held)

    async def _decoded(
        self, references: Sequence[ImageReference], files: Sequence[bytes], lane: Lane
    ) -> list[DecodedImage]:
        async def decode(reference: ImageReference, file: bytes) -> DecodedImage:
            try:
                return await self._decoder.decode_image(file, lane=lane)
            except ImageError as error:
                is_too_large = isinstance(error, ImageTooLargeError | ImageMemoryError)
                raise InvalidRequestError(
                    f"{str(error)[0].upper()}{str(error)[1:]}.",
                    param=reference.param,
                    code="image_too_large" if is_too_large else "invalid_image",
                ) from error

        try:
            async with asyncio.TaskGroup() as tasks:
                decoding = [
                    tasks.create_task(decode(reference, file))
                    for reference, file in zip(references, files, strict=True)
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in decoding]

    def _file_bytes(self, references: Sequence[ImageReference]) -> int:
        """The most that the files of the references may have."""
        num_bytes = sum(
            self._settings.max_image_bytes if one.data is None else len(one.data) for one in references
        )
        return min(num_bytes, self._settings.max_request_image_bytes)

    def _pixel_bytes(self) -> int:
        """The most that one decoded image may have."""
        images = self._decoder.info.images
        assert images is not None, "only a model that reads images is handed some"
        return images.spec.max_tokens * images.spec.token_side**2 * 3


async def embed_with_images(engine: Engine, intake: ImageIntake, wanted: EmbeddingRequest) -> Embeddings:
    """Embed the inputs of a request, its images included; its time runs from the first image on.

    Raises:
        InvalidRequestError: An image cannot be had or decoded.
        DeadlineError: The images were not there in time.
        Exception: What ``Engine.embed`` raises.
    """
    if not any(wanted.image_references):
        return await engine.embed(wanted.inputs, lane=wanted.lane, timeout_s=wanted.timeout_s)
    started_s = monotonic()
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(wanted.timeout_s):
                inputs = await stack.enter_async_context(intake.inputs_of(wanted))
        except TimeoutError:
            raise DeadlineError(waited_s=monotonic() - started_s) from None
        remaining_s = wanted.timeout_s - (monotonic() - started_s)
        return await engine.embed(inputs, lane=wanted.lane, timeout_s=remaining_s)

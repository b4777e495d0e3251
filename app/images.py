"""From whatever a client writes for an image to the bytes of its file.

Laws: an image that is too large is refused before its base64 is decoded, and one whose URL says too much
before anything is fetched. What the bytes are is not asked here: a declared type is no evidence, the decoder
looks. A file is there only for as long as it is used. All failures are the request's (400): an SDK that took
them for ours would send them twice more, and have somebody else's server asked twice more.
"""

import asyncio
import io
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pybase64

from app.data_uris import data_uri_head, scheme_of
from app.errors import InvalidRequestError, quoted
from app.fetch import Fetcher, FetchError, FetchFailure, FetchStatistics, host_of, read_url
from app.settings import MediaSettings, MediaUrls

T = TypeVar("T")

INLINE_CHARS = 256 * 1024
"""More base64 in a request is decoded in a thread: this much takes 0.02 ms, or 0.3 ms if it has to be cleaned
first, and the way to a thread and back 0.1 ms."""

_PIECE_CHARS = 1024 * 1024
"""Base64 is decoded in pieces: a call holds the interpreter lock to its end, 0.1 ms for each of them, and a
whole string would be held a second time as it is cut or cleaned. A multiple of 4."""
_MAX_BLANK_CHARS = 256
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b"\t\r\n\f"
"""Of line breaks. A blank between two characters was a ``+`` once, which forms turn into one, or is the end
of an image and the beginning of a text: without it another image would be read, or half of the input."""

_NOT_FETCHED = (
    "The image could not be fetched. Its URL must lead to a public address, on port 80 or 443, that answers "
    "with the image as it is, and in time."
)
_NOT_LISTED = (
    "The image could not be fetched. Its URL must lead to one of the hosts that this server is set up for, "
    "and to an answer with the image as it is, and in time."
)
_NO_URL = (
    "This is no URL that an image is fetched from: http:// or https://, a host in ASCII letters, and no user "
    "name, white space or backslash."
)
_EMPTY = "The image is empty."
_NO_FETCHING = "This server fetches no images; send them as data URIs (data:image/png;base64,...)."


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """Where an image is to come from: exactly one of ``url`` and ``data``."""

    param: str
    """What the client calls it: ``input[3].image_url``. For error messages."""
    url: str | None = None
    host: str = ""
    """Of the URL, under the one name that it is counted by."""
    data: str | None = None
    """The string that was sent; cutting its base64 out of it would hold that twice."""
    data_start: int = 0
    """Where the base64 begins in it."""

    @property
    def data_chars(self) -> int:
        """Characters of base64."""
        return 0 if self.data is None else len(self.data) - self.data_start


def read_image_reference(text: str, *, param: str, settings: MediaSettings) -> ImageReference:
    """Read an http or https URL, a data URI, or plain base64.

    Raises:
        InvalidRequestError: It is none of these, or says itself that it is too large.
    """
    match scheme_of(text):
        case None:
            return _of_base64(text, start=0, param=param, settings=settings)
        case "data":
            return _of_base64(text, start=_data_start(text, param=param), param=param, settings=settings)
        case "http" | "https":
            return _of_url(text, param=param, settings=settings)
        case other:
            raise _invalid_image(
                f"An image is an http or https URL, a data URI or base64, not {quoted(f'{other}:')}.",
                param=param,
            )


def _of_url(text: str, *, param: str, settings: MediaSettings) -> ImageReference:
    if settings.media_urls is MediaUrls.OFF:
        raise _invalid_image(_NO_FETCHING, param=param)
    try:
        url = read_url(text)
    except FetchError as error:
        raise _refusal(error, param=param, settings=settings) from None
    return ImageReference(param=param, url=text, host=host_of(url))


def _data_start(text: str, *, param: str) -> int:
    """Where the base64 of a data URI begins; its media type may say anything."""
    head = data_uri_head(text)
    if head is None:
        raise _invalid_image("This data URI has no comma after its type.", param=param)
    if not head.is_base64:
        raise _invalid_image(
            "The data URI of an image must be in base64 (data:image/png;base64,...).", param=param
        )
    return head.data_start


def _of_base64(text: str, *, start: int, param: str, settings: MediaSettings) -> ImageReference:
    reference = ImageReference(param=param, data=text, data_start=start)
    num_chars = reference.data_chars
    # Much white space is found to be empty when it is decoded.
    if not num_chars or (num_chars <= _MAX_BLANK_CHARS and text[start:].isspace()):
        raise _invalid_image(_EMPTY, param=param)
    if num_chars > max_base64_chars(settings.max_image_bytes):
        raise _too_large(f"in {num_chars} characters of base64", param=param, settings=settings)
    return reference


def max_base64_chars(max_bytes: int) -> int:
    """Characters that so many bytes may be written in: 4 for every 3, and a sixteenth more of line breaks.

    Mailers break lines after 64 or 76 characters (RFC 2045, 6.8; RFC 7468), which makes up to 3 %.
    """
    num_chars = 4 * -(-max_bytes // 3)
    return num_chars + num_chars // 16


Use = Callable[[ImageReference, bytes], Awaitable[T]]
"""What is done with each file."""


class ImageLoader:
    """Gets the files of requests' images, those of a request at the same time."""

    def __init__(self, fetcher: Fetcher, settings: MediaSettings) -> None:
        self._fetcher = fetcher
        self._settings = settings
        # A request with many URLs must not take all places.
        self._max_fetches_per_request = max(1, settings.max_fetches // 4)

    def statistics(self) -> FetchStatistics:
        """What was fetched so far."""
        return self._fetcher.statistics()

    async def load(self, references: Sequence[ImageReference], use: Use[T], *, is_query: bool) -> list[T]:
        """Decode and fetch what the references stand for, and use each file as soon as it is there.

        A URL that comes twice is fetched and used once. The first failure stops everything else that is
        still on its way, and so does a cancellation.

        Args:
            references: Of one request.
            use: What is done with a file; a fetch keeps its place until it is done.
            is_query: Their fetches wait behind those of other queries only.

        Returns:
            What ``use`` made of them, one for each reference, in their order.

        Raises:
            InvalidRequestError: An image cannot be had, ``param`` says which.
        """
        loading = _Loading(settings=self._settings)
        slots = asyncio.Semaphore(self._max_fetches_per_request)

        async def fetch(url: str, reference: ImageReference) -> T:
            def count(num_bytes: int) -> None:
                loading.count_bytes(num_bytes, param=reference.param)

            try:
                async with slots, self._fetcher.fetched(url, is_query=is_query, on_bytes=count) as fetched:
                    loading.count_time(fetched.fetch_s, param=reference.param)
                    return await use(reference, fetched.file)
            except FetchError as error:
                raise _refusal(error, param=reference.param, settings=self._settings) from None

        async def use_file(reference: ImageReference, file: bytes) -> T:
            return await use(reference, file)

        # First what costs nobody else anything.
        files = await self._decode([one for one in references if one.data is not None], loading)
        tasks: dict[str | int, asyncio.Task[T]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for index, one in enumerate(references):
                    if one.url is None:
                        tasks[index] = group.create_task(use_file(one, files.popleft()))
                    elif one.url not in tasks:
                        tasks[one.url] = group.create_task(fetch(one.url, one))
        except ExceptionGroup as failures:
            # In the order in which they happened; what came after the first was on its way already.
            raise failures.exceptions[0] from None
        return [tasks[one.url or index].result() for index, one in enumerate(references)]

    async def _decode(self, references: Sequence[ImageReference], loading: "_Loading") -> deque[bytes]:
        # To be emptied: what a thread returned is held by its future, which lives until the next collection.
        def decode() -> deque[bytes]:
            return deque(_decoded(one, settings=self._settings) for one in references)

        num_chars = sum(one.data_chars for one in references)
        files = decode() if num_chars <= INLINE_CHARS else await asyncio.to_thread(decode)
        for one, file in zip(references, files, strict=True):
            loading.count_bytes(len(file), param=one.param)
        return files


@dataclass(slots=True, kw_only=True)
class _Loading:
    """What the images of one request have taken so far."""

    settings: MediaSettings
    num_bytes: int = 0
    fetch_s: float = 0.0

    def count_bytes(self, num_bytes: int, *, param: str) -> None:
        """Count as they arrive: dozens of large images never become one sum too late."""
        self.num_bytes += num_bytes
        if self.num_bytes > self.settings.max_request_image_bytes:
            raise InvalidRequestError(
                f"The images of the request have more than {self.settings.max_request_image_bytes} bytes "
                "together (max_request_image_bytes).",
                param=param,
                code="image_too_large",
            )

    def count_time(self, fetch_s: float, *, param: str) -> None:
        """Count what fetches take, and not what they wait: slow hosts are the request's choice."""
        self.fetch_s += fetch_s
        if self.fetch_s > self.settings.request_fetch_timeout_s:
            raise _invalid_image(
                "Fetching the images of the request takes more than "
                f"{self.settings.request_fetch_timeout_s:g} seconds together (request_fetch_timeout_s).",
                param=param,
            )


def _decoded(reference: ImageReference, *, settings: MediaSettings) -> bytes:
    """The bytes of base64 in either alphabet, with or without padding and line breaks (RFC 4648, 4 and 5)."""
    assert reference.data is not None
    try:
        file = _decode_base64(reference.data, reference.data_start)
    except ValueError:
        raise _invalid_image("The image is not valid base64.", param=reference.param) from None
    if not file:
        raise _invalid_image(_EMPTY, param=reference.param)
    if len(file) > settings.max_image_bytes:
        raise _too_large(f"of {len(file)} bytes", param=reference.param, settings=settings)
    return file


def _decode_base64(text: str, start: int) -> bytes:
    # As most clients write it: 20 MiB take 4 ms; cleaning them first would take 45 ms more.
    pieces = (text[at : at + _PIECE_CHARS] for at in range(start, len(text), _PIECE_CHARS))
    try:
        return _decode_pieces(pieces)
    except ValueError:
        return _decode_pieces(_cleaned(text, start))


def _decode_pieces(pieces: Iterable[str | bytes]) -> bytes:
    """Decode base64 that was cut anywhere between four and four characters."""
    file = io.BytesIO()
    is_padded = False
    for piece in pieces:
        if is_padded:
            raise ValueError("there is padding before the end")
        num_new = file.write(pybase64.b64decode(piece, validate=True))
        is_padded = num_new % 3 != 0
    return file.getvalue()


def _cleaned(text: str, start: int) -> Iterator[bytes]:
    """The same base64 in the standard alphabet, padded, without line breaks; in pieces."""
    rest = b""
    for at in range(start, len(text), _PIECE_CHARS):
        piece = text[at : at + _PIECE_CHARS].encode("ascii")
        if at == start:
            piece = piece.lstrip()
        if at + _PIECE_CHARS >= len(text):
            piece = piece.rstrip()
        rest += piece.translate(_STANDARD_ALPHABET, _WHITE_SPACE)
        num_ready = len(rest) // 4 * 4 - 4  # what is left has all the padding
        if num_ready > 0:
            yield rest[:num_ready]
            rest = rest[num_ready:]
    digits = rest.rstrip(b"=")
    yield digits + b"=" * (-len(digits) % 4)


def _refusal(error: FetchError, *, param: str, settings: MediaSettings) -> InvalidRequestError:
    """What a client is told: nothing that tells one closed door of our network from another."""
    match error.reason:
        case FetchFailure.INVALID_URL:
            return _invalid_image(_NO_URL, param=param)
        case FetchFailure.TOO_LARGE:
            return _too_large("at its URL", param=param, settings=settings)
        case _:
            is_listed = settings.media_urls is MediaUrls.ALLOWLIST
            return _invalid_image(_NOT_LISTED if is_listed else _NOT_FETCHED, param=param)


def _too_large(what: str, *, param: str, settings: MediaSettings) -> InvalidRequestError:
    return InvalidRequestError(
        f"The image {what} is too large; one image may have {settings.max_image_bytes} bytes "
        "(max_image_bytes).",
        param=param,
        code="image_too_large",
    )


def _invalid_image(message: str, *, param: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=param, code="invalid_image")

"""From whatever a client writes for an image to the bytes of its file.

Laws: an image that is too large is refused before it is decoded, and one whose URL says too much before
anything is fetched. What the bytes are is not asked here: a declared type is no evidence, the decoder looks.
All failures are the request's (400): an SDK that took them for ours would send them twice more, and have
somebody else's server asked twice more.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pybase64

from app.errors import InvalidRequestError, quoted
from app.fetch import Fetcher, FetchError, FetchFailure, FetchStatistics, read_url
from app.settings import MediaSettings, MediaUrls

INLINE_CHARS = 256 * 1024
"""More base64 in a request is decoded in a thread: this much takes 0.02 ms, or 0.3 ms if it has to be cleaned
first, and the way to a thread and back 0.1 ms."""

_CHUNK_CHARS = 1024 * 1024
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE | re.ASCII)
_MAX_HEADER_CHARS = 256
"""Of a data URI, up to its comma; media types are short."""
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\r\n\f"

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
    data: str | None = None
    """Base64, as it was sent."""


def read_image_reference(text: str, *, param: str, settings: MediaSettings) -> ImageReference:
    """Read an http or https URL, a data URI, or plain base64.

    Raises:
        InvalidRequestError: It is none of these, or says itself that it is too large.
    """
    scheme = _SCHEME.match(text.lstrip()[:_MAX_HEADER_CHARS])
    match scheme and scheme[1].lower():
        case None:
            return _of_base64(text, param=param, settings=settings)
        case "data":
            return _of_base64(_payload(text, param=param), param=param, settings=settings)
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
        read_url(text)
    except FetchError as error:
        raise _refusal(error, param=param, settings=settings) from None
    return ImageReference(param=param, url=text)


def _payload(text: str, *, param: str) -> str:
    """What follows the comma of a data URI (RFC 2397); its media type may say anything."""
    text = text.lstrip()
    comma = text.find(",", 0, _MAX_HEADER_CHARS)
    if comma < 0:
        raise _invalid_image("This data URI has no comma after its type.", param=param)
    if not text[:comma].rstrip().lower().endswith(";base64"):
        raise _invalid_image(
            "The data URI of an image must be in base64 (data:image/png;base64,...).", param=param
        )
    return text[comma + 1 :]


def _of_base64(data: str, *, param: str, settings: MediaSettings) -> ImageReference:
    if not data or data.isspace():
        raise _invalid_image(_EMPTY, param=param)
    max_chars = max_base64_chars(settings.max_image_bytes)
    if len(data) > max_chars:
        raise _too_large(f"in {len(data)} characters of base64", param=param, settings=settings)
    return ImageReference(param=param, data=data)


def max_base64_chars(max_bytes: int) -> int:
    """Characters that so many bytes may be written in: 4 for every 3, and a sixteenth more of line breaks.

    Mailers break lines after 64 or 76 characters (RFC 2045, 6.8; RFC 7468), which makes up to 3 %.
    """
    num_chars = 4 * -(-max_bytes // 3)
    return num_chars + num_chars // 16


class ImageLoader:
    """Gets the files of a request's images, all at once, in the order that they were asked for."""

    def __init__(self, fetcher: Fetcher, settings: MediaSettings) -> None:
        self._fetcher = fetcher
        self._settings = settings

    def statistics(self) -> FetchStatistics:
        """What was fetched so far."""
        return self._fetcher.statistics()

    async def load(self, references: Sequence[ImageReference]) -> list[bytes]:
        """Decode and fetch what the references stand for; a URL that comes twice is fetched once.

        The first failure stops everything else that is still on its way, and so does a cancellation.

        Returns:
            The files, one for each reference, in their order.

        Raises:
            InvalidRequestError: An image cannot be had, ``param`` says which; or there are too many.
        """
        if len(references) > self._settings.max_images:
            raise InvalidRequestError(
                f"The request holds {len(references)} images; one request may hold "
                f"{self._settings.max_images} (max_images).",
                param=references[self._settings.max_images].param,
                code="too_many_images",
            )
        # First what costs nobody else anything.
        decoded = await self._decode([one for one in references if one.data is not None])
        by_url = {one.url: one for one in reversed(references) if one.url is not None}
        fetched = await self._fetch(by_url, num_bytes=sum(map(len, decoded)))
        of_data = iter(decoded)
        return [next(of_data) if one.url is None else fetched[one.url] for one in references]

    async def _decode(self, references: Sequence[ImageReference]) -> list[bytes]:
        def decode() -> list[bytes]:
            return [_decoded(one, settings=self._settings) for one in references]

        num_chars = sum(len(one.data or "") for one in references)
        files = decode() if num_chars <= INLINE_CHARS else await asyncio.to_thread(decode)
        num_bytes = 0
        for one, file in zip(references, files, strict=True):
            num_bytes += len(file)
            self._limit_request(num_bytes, param=one.param)
        return files

    async def _fetch(self, by_url: Mapping[str, ImageReference], *, num_bytes: int) -> dict[str, bytes]:
        """Fetch every URL, beside ``num_bytes`` of images that are there already."""
        files: dict[str, bytes] = {}

        async def fetch(url: str, param: str) -> None:
            # Piece by piece: dozens of large images that all arrive together never become one sum too late.
            def count(num_new: int) -> None:
                nonlocal num_bytes
                num_bytes += num_new
                self._limit_request(num_bytes, param=param)

            try:
                files[url] = await self._fetcher.fetch(url, on_bytes=count)
            except FetchError as error:
                raise _refusal(error, param=param, settings=self._settings) from None

        try:
            async with asyncio.TaskGroup() as tasks:
                for url, reference in by_url.items():
                    tasks.create_task(fetch(url, reference.param))
        except ExceptionGroup as failures:
            # In the order in which they happened; what came after the first was on its way already.
            raise failures.exceptions[0] from None
        return files

    def _limit_request(self, num_bytes: int, *, param: str) -> None:
        if num_bytes > self._settings.max_request_image_bytes:
            raise InvalidRequestError(
                f"The images of the request have more than {self._settings.max_request_image_bytes} bytes "
                "together (max_request_image_bytes).",
                param=param,
                code="image_too_large",
            )


def _decoded(reference: ImageReference, *, settings: MediaSettings) -> bytes:
    """The bytes of base64 in either alphabet, with or without padding and line breaks (RFC 4648, 4 and 5)."""
    assert reference.data is not None
    try:
        file = _decode_base64(reference.data)
    except ValueError:
        raise _invalid_image("The image is not valid base64.", param=reference.param) from None
    if not file:
        raise _invalid_image(_EMPTY, param=reference.param)
    if len(file) > settings.max_image_bytes:
        raise _too_large(f"of {len(file)} bytes", param=reference.param, settings=settings)
    return file


def _decode_base64(data: str) -> bytes:
    # As most clients write it: 20 MiB take 2 ms; cleaning them first would take 45 ms more.
    try:
        return pybase64.b64decode(data, validate=True)
    except ValueError:
        return pybase64.b64decode(_cleaned(data), validate=True)


def _cleaned(data: str) -> bytes:
    """The same base64 in the standard alphabet, padded, without white space."""
    # In pieces: a call holds the interpreter lock to its end, 1 ms for each of them.
    pieces = [
        data[start : start + _CHUNK_CHARS].encode("ascii").translate(_STANDARD_ALPHABET, _WHITE_SPACE)
        for start in range(0, len(data), _CHUNK_CHARS)
    ]
    digits = b"".join(pieces).rstrip(b"=")
    return digits + b"=" * (-len(digits) % 4)


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

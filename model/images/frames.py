"""What crosses the socket between the gateway and a decode process.

The header of a frame (``model/framing.py``) is a msgpack message, its body raw bytes: an image file on the
way down, its RGB pixels on the way up.

Rule 1: a decode process has read hostile bytes and may be anybody's by now. What it sends is held against
what was asked of it before anything is allocated, and becomes pixels of a size that the model reads or an
error of the list below.
Rule 2: nothing here reads or writes a socket; ``child.py`` and ``main.py`` do that.
"""

import math
from typing import Annotated

import msgspec

from model.errors import (
    ImageAspectError,
    ImageError,
    ImageMemoryError,
    ImageScansError,
    ImageSideError,
    ImageTooLargeError,
    InvalidImageError,
)
from model.framing import FrameError, Framing
from model.images.spec import Alpha, ImageLimits, ImageSpec, Orientation

_FRAMING = Framing(
    mark=b"LNI1",
    max_header_bytes=64 * 1024,
    # Far above any image file that a gateway takes in; the limit that counts is the gateway's own.
    max_body_bytes=1024 * 1024 * 1024,
)
unpack_prefix = _FRAMING.unpack_prefix

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class SetUp(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Gateway to process, first and once: how to decode."""

    spec: ImageSpec
    limits: ImageLimits
    orientation: Orientation
    alpha: Alpha


class Decode(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Gateway to process: one image. Body: the file."""


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Process to gateway: images may come, one at a time."""


class Decoded(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Process to gateway: the answer to a ``Decode``. Body: ``[height, width, 3]`` uint8."""

    width: _Positive
    height: _Positive


class Refused(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Process to gateway: the image cannot be embedded."""

    error: str
    """Name of the ``ImageError``."""
    facts: dict[str, int | float | str | None]
    """The error's attributes, by which it is made again."""


class Failed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Process to gateway: a mistake of ours."""

    description: str
    """Type of the exception and where it came from, for the log. Not its text, which may hold the input."""


ToProcess = SetUp | Decode
ToGateway = Ready | Decoded | Refused | Failed

_encoder = msgspec.msgpack.Encoder()
_to_process: msgspec.msgpack.Decoder[ToProcess] = msgspec.msgpack.Decoder(ToProcess)
_to_gateway: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)

_REFUSALS: dict[str, type[ImageError]] = {
    error.__name__: error
    for error in (
        InvalidImageError,
        ImageTooLargeError,
        ImageSideError,
        ImageAspectError,
        ImageScansError,
        ImageMemoryError,
    )
}


def pack_head(message: ToProcess | ToGateway, *, body_bytes: int = 0) -> bytes:
    """Prefix and header of a frame; ``body_bytes`` bytes of body must follow it."""
    return _FRAMING.pack_head(_encoder.encode(message), body_bytes=body_bytes)


def unpack_for_process(header: bytes | memoryview) -> ToProcess:
    """Read a header that a gateway sent; raises ``FrameError``."""
    try:
        return _to_process.decode(header)
    except msgspec.MsgspecError as error:
        raise FrameError(f"no message for a decode process: {error}") from error


def unpack_for_gateway(header: bytes | memoryview) -> ToGateway:
    """Read a header that a decode process sent; raises ``FrameError``."""
    try:
        return _to_gateway.decode(header)
    except msgspec.MsgspecError as error:
        raise FrameError(f"no message for a gateway: {error}") from error


def refusal_of(error: ImageError) -> Refused:
    """Write an error down; its attributes bear the names of its arguments."""
    return Refused(error=type(error).__name__, facts=vars(error))


def error_of(refused: Refused) -> ImageError:
    """Make the error again.

    Raises:
        FrameError: It is none that decoding raises, or not with these facts.
    """
    try:
        return _REFUSALS[refused.error](**refused.facts)
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"no refusal: {refused.error}") from error


def check_decoded(decoded: Decoded, body_bytes: int, spec: ImageSpec) -> None:
    """Hold an announced image against the model's sizes and its own body.

    Raises:
        FrameError: It is not what decoding gives.
    """
    width, height, side = decoded.width, decoded.height, spec.token_side
    # What is enlarged is rounded up, and may exceed by almost a row and a column what it is enlarged to.
    max_tokens = spec.max_tokens + 2 * math.ceil(math.sqrt(spec.max_aspect_ratio * spec.max_tokens)) + 1
    if width % side or height % side or width * height > max_tokens * side**2:
        raise FrameError(f"an image of {width} x {height} pixels is no size of the model's")
    if body_bytes != width * height * 3:
        raise FrameError(f"an image of {width} x {height} pixels came as {body_bytes} bytes")

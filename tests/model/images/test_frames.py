"""What a decode process may say: hostile bytes have run through it, so its word is held against the facts."""

import struct

import msgspec
import pytest

from model.errors import (
    DecodeFailedError,
    ImageAspectError,
    ImageMemoryError,
    ImageScansError,
    ImageSideError,
    ImageTooLargeError,
    InvalidImageError,
)
from model.framing import PREFIX_BYTES, FrameError
from model.images import Alpha, ImageLimits, ImageSpec, Orientation, ResizeRule, frames, target_sizes
from tests.model.images.conftest import GME
from tests.model.images.test_sizes import random_sizes


def there(message: frames.ToProcess) -> frames.ToProcess:
    return frames.unpack_for_process(header_of(frames.pack_head(message)))


def back(message: frames.ToGateway) -> frames.ToGateway:
    return frames.unpack_for_gateway(header_of(frames.pack_head(message)))


def header_of(head: bytes) -> bytes:
    header_bytes, _ = frames.unpack_prefix(head[:PREFIX_BYTES])
    header = head[PREFIX_BYTES:]
    assert len(header) == header_bytes
    return header


def test_how_to_decode_arrives_as_it_was_sent():
    set_up = frames.SetUp(
        spec=GME,
        limits=ImageLimits(max_pixels=5, decode_timeout_s=0.5),
        orientation=Orientation.STORED,
        alpha=Alpha.DROP,
    )
    assert there(set_up) == set_up


@pytest.mark.parametrize(
    "error",
    [
        InvalidImageError(fault="OSError"),
        ImageTooLargeError(max_pixels=5, num_pixels=6, kind="WebP"),
        ImageTooLargeError(max_pixels=5),
        ImageSideError(width=2, height=3, min_side=3, max_side=9),
        ImageAspectError(width=2, height=3000, max_aspect_ratio=200.0),
        ImageScansError(max_scans=32),
        ImageMemoryError(memory_bytes=290_000_000),
    ],
)
def test_an_error_arrives_with_its_text_and_its_numbers(error):
    message = back(frames.refusal_of(error))
    assert isinstance(message, frames.Refused)
    arrived = frames.error_of(message)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


@pytest.mark.parametrize(
    "refused",
    [
        frames.Refused(error="KeyboardInterrupt", facts={}),
        frames.Refused(error=DecodeFailedError.__name__, facts={}),
        frames.Refused(error=InvalidImageError.__name__, facts={"code": "rm"}),
        frames.Refused(error=ImageTooLargeError.__name__, facts={"max_pixels": "many"}),
        frames.Refused(error=ImageMemoryError.__name__, facts={}),
    ],
)
def test_an_error_that_decoding_does_not_raise_is_none(refused):
    with pytest.raises(FrameError, match=f"no refusal: {refused.error}"):
        frames.error_of(refused)


@pytest.mark.parametrize(
    ("width", "height", "num_bytes", "complaint"),
    [
        (27, 28, 27 * 28 * 3, "27 x 28 pixels is no size of the model's"),
        (28, 29, 28 * 29 * 3, "28 x 29 pixels is no size of the model's"),
        (28_000, 28_000, 28_000 * 28_000 * 3, "28000 x 28000 pixels is no size of the model's"),
        (28, 28, 28 * 28 * 3 - 1, "28 x 28 pixels came as 2351 bytes"),
    ],
)
def test_an_image_of_no_size_of_the_models_is_none(width, height, num_bytes, complaint):
    """Before a byte of memory is given to it."""
    with pytest.raises(FrameError, match=complaint):
        frames.check_decoded(frames.Decoded(width=width, height=height), num_bytes, GME)


@pytest.mark.parametrize(("min_tokens", "max_tokens"), [(256, 1280), (1, 1), (4, 4), (1000, 1000)])
def test_every_size_that_a_spec_gives_is_accepted(min_tokens, max_tokens):
    """An enlarged image is rounded up, beyond the maximum where that is near the minimum."""
    rule = ResizeRule(min_tokens=min_tokens, max_tokens=max_tokens, clamps_aspect=True)
    spec = ImageSpec(patch_size=14, merge_size=2, resizes=(rule,))
    for size in random_sizes(seed=3, count=1000):
        ((width, height),) = target_sizes(*size, spec)
        frames.check_decoded(frames.Decoded(width=width, height=height), width * height * 3, spec)


@pytest.mark.parametrize(
    ("prefix", "complaint"),
    [
        (struct.pack("=4sIQ", b"HTTP", 1, 1), "a frame starts with b'LNI1', this one with b'HTTP'"),
        (struct.pack("=4sIQ", b"LNI1", 2**20, 1), "a header of 1048576 bytes; 65536 are allowed"),
        (struct.pack("=4sIQ", b"LNI1", 1, 2**40), "a body of 1099511627776 bytes; 1073741824 are allowed"),
    ],
)
def test_bytes_that_are_no_frame_are_refused_before_they_are_read(prefix, complaint):
    with pytest.raises(FrameError, match=complaint):
        frames.unpack_prefix(prefix)


def test_a_message_for_one_end_is_none_for_the_other():
    with pytest.raises(FrameError, match="no message for a gateway"):
        frames.unpack_for_gateway(header_of(frames.pack_head(frames.Decode())))
    with pytest.raises(FrameError, match="no message for a decode process"):
        frames.unpack_for_process(header_of(frames.pack_head(frames.Ready())))
    with pytest.raises(FrameError, match="no message for a gateway"):
        frames.unpack_for_gateway(msgspec.msgpack.encode({"type": "Decoded", "width": 0, "height": 28}))

"""How often a JPEG goes over its picture, counted where libjpeg would find it."""

import random

import numpy as np
import pytest

from model.errors import ImageScansError
from model.images import ImageLimits
from model.images.scans import has_more_scans
from tests.model.images import corpus
from tests.model.images.conftest import decode_here

SOI, EOI, SOS = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"


def num_scans(data: bytes) -> int:
    return next(number for number in range(1_000) if not has_more_scans(data, number))


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content


@pytest.mark.parametrize(("options", "expected"), [({}, 1), ({"progressive": True}, 10)])
def test_the_scans_of_an_encoder_are_counted(options, expected):
    data = corpus.save(corpus.noise(300, 200), "JPEG", **options)
    assert num_scans(data) == expected


def test_pictures_in_the_metadata_and_behind_the_first_one_do_not_count():
    """Cameras put a thumbnail into EXIF, and phones a film behind the photo."""
    photo = corpus.save(corpus.noise(80, 60), "JPEG")
    thumbnail = segment(0xE1, b"Exif\0\0" + photo) + segment(0xFE, SOS * 1_000)
    film = random.Random(0).randbytes(2_000_000) + SOS * 100
    assert num_scans(SOI + thumbnail + photo[2:] + film) == 1
    assert num_scans(corpus.phone_photo()) == 1


def test_32_scans_are_decoded_and_no_more():
    assert decode_here(corpus.jpeg_of_scans(32)).num_tokens
    with pytest.raises(ImageScansError, match="the JPEG has more than the 32 scans that are allowed"):
        decode_here(corpus.jpeg_of_scans(33))
    assert decode_here(corpus.jpeg_of_scans(33), limits=ImageLimits(max_scans=33)).num_tokens


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param(lambda scan: b"\xff" * 9 + scan, id="behind fill bytes"),
        pytest.param(lambda scan: b"junk\xff\0junk" + scan, id="behind junk"),
        pytest.param(lambda scan: b"\xff\xd0\xff\x01" + scan, id="behind markers without a segment"),
        pytest.param(lambda scan: b"\xff\xfe\0\1" + scan, id="behind a comment shorter than its length"),
        pytest.param(lambda scan: segment(0xE9, SOS + EOI) + scan, id="behind the end of another picture"),
    ],
)
def test_a_scan_that_libjpeg_finds_is_counted(hidden):
    """The last of ten is hidden: what is decoded with it is another picture than without."""
    whole = corpus.save(corpus.noise(80, 60), "JPEG", progressive=True, quality=95)
    start = whole.rindex(SOS)
    other, last = whole[:start], whole[start : -len(EOI)]
    assert (pixels_of(other + hidden(last) + EOI) == pixels_of(whole)).all()
    assert (pixels_of(other + EOI) != pixels_of(whole)).any()
    assert num_scans(other + hidden(last) * 5 + EOI) == 14


def test_a_scan_is_found_behind_a_marker_that_libjpeg_steps_over():
    """Where it looks for a restart in the middle of a scan, it takes no notice of lengths (T.81, E.2.4)."""
    one = corpus.jpeg_of_scans(10)
    assert num_scans(one[:-2] + b"\xff\x05\xff\0" + SOS + EOI) == 11


def pixels_of(data: bytes) -> np.ndarray:
    return decode_here(data).pixels

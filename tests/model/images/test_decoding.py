"""Every kind of file: the right pixels, or an error that says only what is known of it."""

import errno
import random
import re
import traceback
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.errors import (
    ImageAspectError,
    ImageError,
    ImageSideError,
    ImageTooLargeError,
    InvalidImageError,
)
from model.images import Alpha, ImageLimits, ImageSpec, Orientation, ResizeRule, target_sizes
from tests.model.images import corpus
from tests.model.images.conftest import decode_here

UNREADABLE = "the image cannot be read: it has to be a whole, undamaged JPEG, PNG, WebP or GIF file"

GOOD, BAD, BOMBS = corpus.good_files(), corpus.bad_files(), corpus.bombs()

AS_STORED = {"orientation": Orientation.STORED, "alpha": Alpha.DROP}
"""As models' own code reads its images."""


def refusal(data: bytes, **options: object) -> ImageError:
    """The error, of which nothing may show what Pillow said."""
    with pytest.raises(ImageError) as caught:
        decode_here(data, **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert re.search(r"0x[0-9a-f]|BytesIO|PIL\.", shown) is None
    return caught.value


def pixels_of(data: bytes, **options: object) -> np.ndarray:
    return decode_here(data, **options).pixels


# The right pixels


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_has_its_colour_everywhere(name):
    data, color = GOOD[name]
    decoded = decode_here(data)
    assert decoded.pixels.shape == (392, 560, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.num_tokens == 14 * 20
    assert (decoded.pixels == color).all()


def test_a_palettes_hole_is_white():
    data = corpus.save(corpus.transparent_palette(), "PNG", transparency=0)
    pixels = pixels_of(data)
    assert tuple(pixels[200, 20]) == corpus.RED
    assert tuple(pixels[200, -20]) == corpus.WHITE


def test_a_palettes_half_transparent_colour_is_half_white():
    """A palette may have as many degrees of transparency as colours (PNG, tRNS)."""
    data = corpus.save(corpus.transparent_palette(), "PNG", transparency=bytes([100, 255]))
    assert tuple(pixels_of(data)[200, -20]) == (155, 155, 255)


def test_a_gifs_hole_is_white():
    data = corpus.save(corpus.transparent_palette(), "GIF", transparency=0)
    pixels = pixels_of(data)
    assert tuple(pixels[200, 20]) == corpus.RED
    assert tuple(pixels[200, -20]) == corpus.WHITE


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_can_be_dropped_as_the_authors_code_drops_it(mode):
    """``convert("RGB")`` shows the colours that nobody was meant to see."""
    image = corpus.noise(90, 70, mode=mode)
    dropped = pixels_of(corpus.save(image, "PNG"), alpha=Alpha.DROP)
    assert (dropped == pixels_of(corpus.save(image.convert("RGB"), "PNG"))).all()


def test_transparency_is_laid_on_white_before_anything_is_resized():
    """The other way round, hidden colours would bleed over the edges."""
    image = corpus.noise(90, 70, mode="RGBA")
    white = Image.new("RGBA", image.size, corpus.WHITE)
    flat = Image.alpha_composite(white, image).convert("RGB")
    ours, theirs = (pixels_of(corpus.save(one, "PNG")).astype(int) for one in (image, flat))
    assert np.abs(ours - theirs).max() <= 1  # each rounds the blend its own way


def test_the_first_picture_of_an_animation_is_read():
    for format_name in ("GIF", "WEBP", "PNG"):
        assert (pixels_of(corpus.animation(format_name)) == corpus.RED).all(), format_name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_read_upright(orientation):
    data = corpus.rotated_jpeg(orientation)
    upright = ImageOps.exif_transpose(opened(data))
    assert (pixels_of(data) == pixels_of(corpus.save(upright, "PNG"))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_can_be_read_as_it_is_stored(orientation):
    """The author's code never turns an image."""
    data = corpus.rotated_jpeg(orientation)
    stored = corpus.save(opened(data).convert("RGB"), "PNG")
    assert (pixels_of(data, orientation=Orientation.STORED) == pixels_of(stored)).all()


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_means_none(orientation):
    assert tuple(pixels_of(corpus.rotated_jpeg(orientation))[5, 5]) == (254, 0, 0)


def opened(data: bytes) -> Image.Image:
    return Image.open(corpus.io.BytesIO(data))


# Bands


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK", "P", "1"])
@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (301, 203)), (2, (95, 430)), (6, (430, 95)), (7, (95, 430))]
)
def test_bands_give_the_numbers_of_doing_it_all_at_once(mode, orientation, size, monkeypatch):
    """The picture is converted, turned and half resized in pieces for the sake of memory alone."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = corpus.noise(*size, mode="RGBA") if mode == "RGBA" else corpus.noise(*size).convert(mode)
    data = corpus.save(image, "JPEG" if mode == "CMYK" else "PNG", exif=exif)
    whole = pixels_of(data)
    for band_pixels in (1, 5000, 10_000):
        monkeypatch.setattr("model.images.decoding._BAND_PIXELS", band_pixels)
        assert (pixels_of(data) == whole).all(), band_pixels


def test_two_passes_of_ours_are_one_resize_of_pillows():
    """Of every shape: which pass is first is Pillow's own affair, and was changed in Pillow 13."""
    numbers = random.Random(0)
    for seed in range(50):
        size = numbers.randint(3, 400), numbers.randint(3, 400)
        image = corpus.noise(*size, seed=seed)
        expected = image
        for target in target_sizes(*size, SMALL):
            expected = expected.resize(target, Image.Resampling.BICUBIC)
        ours = pixels_of(corpus.save(image, "PNG", compress_level=1), spec=SMALL)
        assert (ours == np.asarray(expected)).all(), size


SMALL = ImageSpec(
    patch_size=14,
    merge_size=2,
    resizes=(
        ResizeRule(min_tokens=4, max_tokens=50, clamps_aspect=True),
        ResizeRule(min_tokens=10, max_tokens=20),
    ),
)
"""Reduces most images: GME's own first rule reduces none below 12 million pixels."""


# What cannot be read


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_image_is_refused_with_one_fixed_text(name):
    error = refusal(BAD[name])
    assert type(error) is InvalidImageError
    assert str(error) == UNREADABLE
    assert error.fault


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name):
    error = refusal(BOMBS[name])
    assert type(error) is ImageTooLargeError
    assert re.fullmatch(r"the (image|WebP) has more than the [\d,]+ pixels that are allowed", str(error))
    assert error.max_pixels == (40_000_000 if "WebP" not in name else 17_365_263)


def test_one_pixel_too_many_is_too_many_and_the_error_counts_them():
    limits = ImageLimits(max_pixels=60 * 40)
    assert decode_here(corpus.red_png(size=(60, 40)), limits=limits)
    error = refusal(corpus.red_png(size=(60, 41)), limits=limits)
    assert str(error) == "the PNG has 2,460 pixels, more than the 2,400 pixels that are allowed"


@pytest.mark.parametrize(
    ("name", "options", "max_pixels"),
    [
        ("PNG", {}, 1_000_000),
        ("JPEG", {}, 1_000_000),
        ("progressive JPEG", {"progressive": True}, 653_000),
        ("WebP", {}, 394_000),
    ],
)
def test_formats_that_take_more_memory_have_a_lower_limit(name, options, max_pixels):
    """libwebp and a progressive JPEG's coefficients would otherwise take what the others do not."""
    data = corpus.save(corpus.solid("RGB", corpus.RED, (1200, 900)), name.split()[-1], **options)
    error = refusal(data, limits=ImageLimits(max_pixels=1_000_000, memory_bytes=6_800_000))
    assert type(error) is ImageTooLargeError
    assert error.max_pixels == pytest.approx(max_pixels, rel=0.05)


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 2), (2, 300), (300, 2), (1, 20_000), (20_000, 1), (66_000, 400)]
)
def test_a_side_may_not_be_too_short_or_too_long(size):
    width, height = size
    error = refusal(corpus.red_png(size=size))
    assert type(error) is ImageSideError
    assert str(error) == (
        f"the image is {width:,} x {height:,} pixels; each side must have at least 3 and at most 65,535"
    )


def test_an_image_may_be_200_to_1_and_no_longer():
    assert decode_here(corpus.red_png(size=(3, 600))).pixels.shape == (2072, 112, 3)
    error = refusal(corpus.red_png(size=(3, 601)))
    assert type(error) is ImageAspectError
    assert str(error) == "the image is 3 x 601 pixels; the long side must be at most 200 times the short one"


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_pixel_type_that_pillow_would_clip_is_refused(mode, monkeypatch):
    """No file of the four formats has one today; one that a later Pillow finds must not become white."""
    monkeypatch.setattr("model.images.decoding._FORMATS", ("TIFF",))
    error = refusal(corpus.save(corpus.solid(mode, 70_000), "TIFF"))
    assert type(error) is InvalidImageError
    assert error.fault == f"mode {mode}"


def test_a_library_that_needs_a_file_of_its_own_is_our_mistake_and_not_the_images(monkeypatch):
    """In a decode process nothing can be opened; a client would be told that its image is damaged."""

    def import_late(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", import_late)
    with pytest.raises(OSError, match="Too many open files"):
        decode_here(GOOD["PNG RGB"][0])


def test_decoding_leaves_pillows_settings_and_the_warnings_alone():
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    decode_here(GOOD["PNG RGB"][0])
    refusal(BAD["HTML"])
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before

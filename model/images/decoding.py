"""From the bytes of an image file to the pixels that a model reads. Runs in a process of its own (main.py).

Rule 1: Pillow is handed four formats and no more, and its opinion of a file's size is not waited for: what is
too large is refused by its header.
Rule 2: no text of Pillow's leaves this file. It may hold an address of the process (CVE-2026-22778).
Rule 3: the full picture exists once. It is made RGB, laid on white, turned and half resized in bands, so that
a decode takes the memory of the loaded file and not three times that. The numbers are those of doing all of
it at once: Pillow resizes in two passes, and a pass along the rows takes each row by itself.
"""

import errno
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import (
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.Image import Resampling

from model.errors import (
    ImageAspectError,
    ImageError,
    ImageMemoryError,
    ImageScansError,
    ImageSideError,
    ImageTooLargeError,
    InvalidImageError,
)
from model.images.bands import TURNS, UPRIGHT, Turn, first_pass_bands, first_pass_size
from model.images.scans import has_more_scans
from model.images.sizes import Size, num_tokens_at, target_sizes
from model.images.spec import Alpha, DecodedImage, ImageLimits, ImageSpec, Orientation

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_PLUGINS = (
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,  # a phone's JPEG that holds a second picture
    PngImagePlugin,
    TiffImagePlugin,  # reads EXIF; its own format is not in the list
    WebPImagePlugin,
)
"""Named, so that Pillow has them: it would import those of thirty other formats when it first misses one."""
# The first ``Image.open`` would do this, when the process can open no more files (confinement.py).
Image.preinit()

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16")
"""Pixel types that become RGB rightly. Pillow would clip the others ("I", "F") to black or white."""

_BAND_PIXELS = 1_000_000
"""Of the full picture, worked on at a time: some megabytes."""


class _Cost(NamedTuple):
    """Memory that a kind of file takes at the worst moment of its decoding."""

    bytes_per_pixel: float
    copies_of_file: int = 1


# Measured with Pillow 13.0 on pictures of 40 million pixels (WebP: 16); a test holds the costly ones to it.
# Its own image has 4 bytes a pixel, or 1 where it is grey or has a palette; the half resized one has 2.3.
_COSTS = {
    "GIF": _Cost(3.6),
    "PNG": _Cost(6.7),
    "JPEG": _Cost(6.7),
    # libjpeg holds every coefficient, 2 bytes each, until it has read the last scan.
    "progressive JPEG": _Cost(10.1),
    "progressive CMYK JPEG": _Cost(12.1),
    # libwebp's animation decoder holds two canvases, and Pillow copies twice what it gives.
    "WebP": _Cost(16.7, copies_of_file=3),
}


def decode(
    data: bytes, spec: ImageSpec, limits: ImageLimits, *, orientation: Orientation, alpha: Alpha
) -> DecodedImage:
    """Decode an image file, of several pictures the first, to the size that the model reads.

    Args:
        data: The file. Its format is taken from its first bytes.
        spec: How the model wants its images.
        limits: What is accepted. Time and memory are kept by the process, not here.
        orientation: Whether the EXIF orientation counts.
        alpha: What stands behind transparent pixels.

    Raises:
        ImageError: The image cannot be embedded.
    """
    try:
        image, sizes = _read(data, spec, limits, orientation, alpha)
        for size in sizes:
            image = image.resize(size, Resampling.BICUBIC)
        pixels = np.asarray(image)
    except MemoryError:
        raise ImageMemoryError(memory_bytes=limits.memory_bytes) from None
    return DecodedImage(pixels=pixels, num_tokens=num_tokens_at(sizes[-1], spec))


def _read(
    data: bytes, spec: ImageSpec, limits: ImageLimits, orientation: Orientation, alpha: Alpha
) -> tuple[Image.Image, tuple[Size, ...]]:
    """Read the picture, upright, RGB and halfway to the first of its target sizes, which it tells as well."""
    opening_kind = "WebP" if data[8:12] == b"WEBP" else "image"
    try:
        with (
            _strict_pillow(opening_kind, data, limits),
            Image.open(BytesIO(data), formats=_FORMATS) as source,
        ):
            _check(source, data, limits)
            source.load()
            turn = _turn_of(source) if orientation is Orientation.EXIF else UPRIGHT
            sizes = target_sizes(*turn.upright_size(source.size), spec)
            return _half_resized(source, turn, sizes[0], alpha), sizes
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        max_pixels = _max_pixels(opening_kind, data, limits)
        raise ImageTooLargeError(max_pixels=max_pixels, kind=opening_kind) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise  # no file of a stranger's makes Pillow open another; ours was to import all that it needs
        # Whatever a decoder of hostile bytes may raise: OSError, ValueError, SyntaxError, struct.error, ...
        raise InvalidImageError(fault=type(error).__name__) from None


@contextmanager
def _strict_pillow(kind: str, data: bytes, limits: ImageLimits) -> Generator[None]:
    """Have Pillow refuse a file that opening alone would make expensive, and keep its warnings to itself."""
    before = Image.MAX_IMAGE_PIXELS
    max_pixels = _max_pixels(kind, data, limits)
    # Pillow refuses above twice this number. To open a WebP is to allocate its canvases, so there it has to
    # refuse at the limit itself; the others cost nothing yet, and ``_check`` can say how large they are.
    Image.MAX_IMAGE_PIXELS = max_pixels // 2 if kind == "WebP" else max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check(source: Image.Image, data: bytes, limits: ImageLimits) -> None:
    """Refuse what is too large, too small, too long, too slow or of no pixel type for RGB."""
    width, height = source.size
    if min(width, height) < limits.min_side or max(width, height) > limits.max_side:
        raise ImageSideError(width=width, height=height, min_side=limits.min_side, max_side=limits.max_side)
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ImageAspectError(width=width, height=height, max_aspect_ratio=limits.max_aspect_ratio)
    kind = _kind_of(source)
    max_pixels = _max_pixels(kind, data, limits)
    if width * height > max_pixels:
        raise ImageTooLargeError(max_pixels=max_pixels, num_pixels=width * height, kind=kind)
    if source.format in ("JPEG", "MPO") and has_more_scans(data, limits.max_scans):
        raise ImageScansError(max_scans=limits.max_scans)
    if source.mode not in _MODES:
        raise InvalidImageError(fault=f"mode {source.mode}")


def _kind_of(source: Image.Image) -> str:
    match source.format:
        case "JPEG" | "MPO" if source.info.get("progressive"):
            return "progressive CMYK JPEG" if source.mode == "CMYK" else "progressive JPEG"
        case "MPO":
            return "JPEG"
        case "WEBP":
            return "WebP"
        case name:
            return name or "image"


def _max_pixels(kind: str, data: bytes, limits: ImageLimits) -> int:
    cost = _COSTS.get(kind)
    if cost is None:  # not opened yet, and opening takes no memory
        return limits.max_pixels
    free_bytes = max(0, limits.memory_bytes - cost.copies_of_file * len(data))
    return min(limits.max_pixels, int(free_bytes / cost.bytes_per_pixel))


def _turn_of(source: Image.Image) -> Turn:
    try:
        return TURNS.get(source.getexif().get(ExifTags.Base.Orientation, 1), UPRIGHT)
    except Exception:
        # A picture is worth more than its metadata, which is what cameras and editors break most.
        return UPRIGHT


def _half_resized(source: Image.Image, turn: Turn, new_size: Size, alpha: Alpha) -> Image.Image:
    """The upright picture in RGB after the first pass of a resize: one side is the new one, one as it was."""
    size = turn.upright_size(source.size)
    half = Image.new("RGB", first_pass_size(size, new_size))
    for box, band_size in first_pass_bands(size, new_size, max_pixels=_BAND_PIXELS):
        band = _to_rgb(source.crop(turn.stored_box(source.size, box)), alpha)
        if turn.method is not None:
            band = band.transpose(turn.method)
        half.paste(band.resize(band_size, Resampling.BICUBIC), box[:2])
    return half


def _to_rgb(band: Image.Image, alpha: Alpha) -> Image.Image:
    if band.mode == "I;16":
        band = _to_8_bits(band)
    if alpha is Alpha.DROP or not band.has_transparency_data:
        return band.convert("RGB")
    layer = band.convert("RGBA")
    white = Image.new("RGB", band.size, "white")
    white.paste(layer, mask=layer)
    return white


def _to_8_bits(band: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8, by its upper byte; ``convert`` would make everything above 255 white."""
    values = np.asarray(band)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = band.info.get("transparency")
    if transparent is None:
        return grey
    mask = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, mask))

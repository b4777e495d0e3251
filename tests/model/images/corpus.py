"""Image files, good and hostile, written when a test asks for them.

Bombs are small here, too: a header may promise any size, and what has to refuse them reads no further.
"""

import io
import struct
import zlib
from collections.abc import Iterable
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
WHITE = (255, 255, 255)


def save(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def solid(mode: str, color: object, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new(mode, size, color)


def quarters(size: tuple[int, int] = (120, 80)) -> Image.Image:
    """Red and green above blue and yellow: no two of its eight orientations look the same."""
    width, height = size
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def noise(width: int, height: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


# PNG, chunk by chunk


def png_chunk(name: bytes, data: bytes, *, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def png(
    width: int,
    height: int,
    rows: bytes = b"",
    *,
    bit_depth: int = 8,
    color_type: int = 2,
    before: Iterable[bytes] = (),
) -> bytes:
    """A PNG of raw rows, each behind its filter byte; ``before`` are chunks that stand before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), *before, png_chunk(b"IDAT", zlib.compress(rows, 1))]
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, png_chunk(b"IEND", b"")])


def grey16_png(value: int, *, transparent: int | None = None, size: tuple[int, int] = (60, 40)) -> bytes:
    width, height = size
    before = [] if transparent is None else [png_chunk(b"tRNS", struct.pack(">H", transparent))]
    rows = (b"\0" + struct.pack(">H", value) * width) * height
    return png(width, height, rows, bit_depth=16, color_type=0, before=before)


def red_png(*before: bytes, size: tuple[int, int] = (60, 40)) -> bytes:
    width, height = size
    return png(width, height, (b"\0" + bytes(RED) * width) * height, before=before)


def with_broken_checksum(data: bytes, chunk_name: bytes) -> bytes:
    start = data.index(chunk_name)
    (length,) = struct.unpack(">I", data[start - 4 : start])
    end = start + 4 + length
    return data[:end] + bytes(byte ^ 0xFF for byte in data[end : end + 4]) + data[end + 4 :]


def with_wrong_byte(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]


def png_of_many_texts(num_chunks: int) -> bytes:
    return red_png(*[png_chunk(b"tEXt", b"k\0v")] * num_chunks)


def zlib_bomb(num_bytes: int = 64 * 1024 * 1024) -> bytes:
    return zlib.compress(bytes(num_bytes), 9)


# The other formats


def flat_webp(width: int, height: int, color: tuple[int, int, int, int]) -> bytes:
    """A lossless WebP of one colour: 34 bytes, whatever its size (RFC 9649, section 3.7)."""
    bits: list[int] = []

    def put(value: int, num_bits: int) -> None:
        bits.extend(value >> number & 1 for number in range(num_bits))

    red, green, blue, alpha = color
    put(0x2F, 8)
    put(width - 1, 14)
    put(height - 1, 14)
    put(1, 1)  # there is alpha
    put(0, 3 + 3)  # version; no transform, no colour cache, no meta prefix codes
    for symbol in (green, red, blue, alpha):
        put(0b101, 3)  # a simple code of one symbol, written in 8 bits: a pixel takes no bit at all
        put(symbol, 8)
    put(0b0001, 4)  # the same for distances, in 1 bit
    put(0, 8 + -len(bits) % 8)
    body = bytes(
        sum(bit << number for number, bit in enumerate(bits[start : start + 8]))
        for start in range(0, len(bits), 8)
    )
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def gif_that_claims(width: int, height: int) -> bytes:
    small = save(solid("P", 0, (8, 8)), "GIF")
    frame = small.index(b",", 13)
    size = struct.pack("<HH", width, height)
    return small[:6] + size + small[10 : frame + 5] + size + small[frame + 9 :]


def jpeg_that_claims(width: int, height: int) -> bytes:
    small = save(noise(64, 64), "JPEG", progressive=True)
    start = small.index(b"\xff\xc2") + 5
    return small[:start] + struct.pack(">HH", height, width) + small[start + 4 :]


def jpeg_of_scans(num_scans: int, size: tuple[int, int] = (60, 40)) -> bytes:
    """A progressive JPEG that goes over its picture so often, at least 10 times: the last scan comes again."""
    whole = save(solid("RGB", RED, size), "JPEG", progressive=True, quality=95)
    start, end = whole.rindex(b"\xff\xda"), len(whole) - 2
    return whole[:end] + whole[start:end] * (num_scans - 10) + whole[end:]


def rotated_jpeg(orientation: int) -> bytes:
    """The quarters as a camera would store them: turned, with a note how to turn them back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(quarters(), "JPEG", quality=95, subsampling=0, exif=exif)


def animation(format_name: str) -> bytes:
    return save(
        solid("RGB", RED), format_name, save_all=True, append_images=[solid("RGB", BLUE)], lossless=True
    )


def phone_photo() -> bytes:
    """A JPEG with a second one behind it (MPO), as phones write for depth or stereo."""
    return save(solid("RGB", RED), "MPO", save_all=True, append_images=[solid("RGB", BLUE)], quality=95)


def transparent_palette() -> Image.Image:
    """The left half of a palette's red, the right half of a colour that is not there."""
    image = Image.new("P", (60, 40), 1)
    image.putpalette([*BLUE, *RED])
    image.paste(0, (30, 0, 60, 40))
    return image


# The rows of the table: what must become pixels, and what must be refused


@cache
def good_files() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Files of one colour, and the colour they must have (in their middle, where two meet)."""
    some_text = PngImagePlugin.PngInfo()
    some_text.add_text("comment", "x" * 1000, zip=True)
    return {
        "PNG RGB": (save(solid("RGB", RED), "PNG"), RED),
        "PNG grey": (save(solid("L", 100), "PNG"), (100, 100, 100)),
        "PNG of 1 bit": (save(solid("1", 1), "PNG"), WHITE),
        "PNG palette": (save(solid("RGB", RED).quantize(4), "PNG"), RED),
        "PNG with a text": (save(solid("RGB", RED), "PNG", pnginfo=some_text), RED),
        "PNG with 100,000 texts": (png_of_many_texts(100_000), RED),
        "PNG 16-bit grey": (grey16_png(40_000), (156, 156, 156)),
        "PNG 16-bit grey, dark": (grey16_png(300), (1, 1, 1)),
        "PNG 16-bit RGB": (
            png(60, 40, (b"\0" + struct.pack(">3H", 40_000, 300, 65_535) * 60) * 40, bit_depth=16),
            (156, 1, 255),
        ),
        "PNG transparent red": (save(solid("RGBA", (*RED, 0)), "PNG"), WHITE),
        "PNG half transparent red": (save(solid("RGBA", (*RED, 100)), "PNG"), (255, 155, 155)),
        "PNG half transparent grey": (save(solid("LA", (0, 100)), "PNG"), (155, 155, 155)),
        "PNG red made transparent": (save(solid("RGB", RED), "PNG", transparency=RED), WHITE),
        "PNG grey made transparent": (save(solid("L", 100), "PNG", transparency=100), WHITE),
        "PNG black bits made transparent": (save(solid("1", 0), "PNG", transparency=0), WHITE),
        "PNG 16-bit grey made transparent": (grey16_png(40_000, transparent=40_000), WHITE),
        "PNG 16-bit grey, another made transparent": (
            grey16_png(40_000, transparent=40_001),
            (156, 156, 156),
        ),
        "PNG with colours beyond its palette": (save(solid("P", 200), "PNG"), (0, 0, 0)),
        "PNG with a wrong checksum behind its pixels": (
            with_broken_checksum(save(solid("RGB", RED), "PNG"), b"IDAT"),
            RED,
        ),
        "APNG": (animation("PNG"), RED),
        "JPEG RGB": (save(solid("RGB", RED), "JPEG", quality=95), (254, 0, 0)),
        "JPEG grey": (save(solid("L", 100), "JPEG"), (100, 100, 100)),
        "JPEG CMYK": (save(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), RED),
        "JPEG progressive": (save(solid("RGB", RED), "JPEG", quality=95, progressive=True), (254, 0, 0)),
        "JPEG with a second picture": (phone_photo(), (254, 0, 0)),
        "JPEG with trailing garbage": (
            save(solid("RGB", RED), "JPEG", quality=95) + b"PK\x03\x04<?php",
            (254, 0, 0),
        ),
        "JPEG with corrupt EXIF": (
            save(solid("RGB", RED), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk"),
            (254, 0, 0),
        ),
        "JPEG with EXIF that is none": (
            save(solid("RGB", RED), "JPEG", quality=95, exif=b"Exif\0\0what is this"),
            (254, 0, 0),
        ),
        "WebP": (save(solid("RGB", RED), "WEBP", lossless=True), RED),
        "WebP transparent": (flat_webp(60, 40, (*RED, 0)), WHITE),
        "WebP animated": (animation("WEBP"), RED),
        "GIF": (save(solid("RGB", RED), "GIF"), RED),
        "GIF grey": (save(solid("L", 100), "GIF"), (100, 100, 100)),
        "GIF animated": (animation("GIF"), RED),
    }


@cache
def bad_files() -> dict[str, bytes]:
    """Files that are no image, or a broken one, or of a kind that is not read."""
    jpeg, whole_png = save(noise(80, 60), "JPEG"), save(noise(80, 60), "PNG")
    webp, gif = save(noise(80, 60), "WEBP"), save(noise(80, 60), "GIF")
    return {
        "nothing": b"",
        "one byte": b"\xff",
        "HTML": b"<!doctype html><title>404</title>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "TIFF": save(solid("RGB", RED), "TIFF"),
        "TIFF of 32-bit integers": save(solid("I", 70_000), "TIFF"),
        "TIFF of floats": save(solid("F", 0.5), "TIFF"),
        "BMP": save(solid("RGB", RED), "BMP"),
        "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(60),
        "PNG of no height": png(60, 0),
        "PNG without pixels": whole_png[: whole_png.index(b"IDAT") - 4],
        "PNG cut in half": whole_png[: len(whole_png) // 2],
        "PNG with a broken header checksum": with_broken_checksum(whole_png, b"IHDR"),
        "PNG with one byte of its pixels wrong": with_wrong_byte(whole_png, whole_png.index(b"IDAT") + 5000),
        "PNG with junk for pixels": red_png(png_chunk(b"IDAT", b"this is no zlib stream")),
        "PNG whose text is a bomb": red_png(png_chunk(b"zTXt", b"k\0\0" + zlib_bomb())),
        "PNG whose colour profile is a bomb": red_png(png_chunk(b"iCCP", b"k\0\0" + zlib_bomb())),
        "JPEG cut in half": jpeg[: len(jpeg) // 2],
        "JPEG of a header alone": jpeg[:200],
        "WebP cut in half": webp[: len(webp) // 2],
        "GIF cut in half": gif[: len(gif) // 2],
    }


@cache
def bombs() -> dict[str, bytes]:
    """Small files that would be gigabytes."""
    return {
        "PNG of 1 bit, 30000 x 30000": png(30_000, 30_000, bit_depth=1, color_type=0),
        "PNG of 1 bit, 13000 x 13000": png(13_000, 13_000, bytes(13_000 * 1626), bit_depth=1, color_type=0),
        "WebP, 16383 x 10000": flat_webp(16_383, 10_000, (0, 0, 0, 255)),
        "WebP, 16383 x 16383": flat_webp(16_383, 16_383, (0, 0, 0, 255)),
        "GIF, 60000 x 2900": gif_that_claims(60_000, 2900),
        "progressive JPEG, 12000 x 12000": jpeg_that_claims(12_000, 12_000),
    }


def largest_files() -> dict[str, bytes]:
    """Files that are as large as the default limits allow, each in its way."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "PNG with alpha, 40 million pixels": png(
            8000, 5000, (b"\0" + bytes((*RED, 100)) * 8000) * 5000, color_type=6
        ),
        "JPEG on its side, 40 million pixels": save(solid("RGB", RED, (8000, 5000)), "JPEG", exif=exif),
        "progressive JPEG, 28 million pixels": save(
            solid("RGB", RED, (7000, 4000)), "JPEG", progressive=True, subsampling=0
        ),
        "WebP, 17 million pixels": flat_webp(4160, 4160, (*RED, 100)),
    }

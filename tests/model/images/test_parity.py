"""Our pixels against those of the published code: what the model is fed must be equal to the last bit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from model.images import Alpha, Orientation
from tests.model.images import corpus
from tests.model.images.conftest import decode_here
from tests.model.images.test_sizes import fetched_size

REFERENCE = Path(__file__).parents[2] / "data" / "gme_reference"
PROCESSOR = Qwen2VLImageProcessorPil(min_pixels=256 * 28 * 28, max_pixels=1280 * 28 * 28)


def published(data: bytes) -> dict[str, np.ndarray]:
    """GME's ``fetch_image``, then the processor of the checkpoint."""
    image = Image.open(corpus.io.BytesIO(data)).convert("RGB")
    fetched = image.resize(fetched_size(*image.size))
    return PROCESSOR(images=[fetched], return_tensors="np")


def ours(data: bytes) -> dict[str, np.ndarray]:
    """Our pixels, scaled and cut into patches by the processor, which resizes nothing."""
    decoded = decode_here(data, orientation=Orientation.STORED, alpha=Alpha.DROP)
    return PROCESSOR(images=[decoded.pixels], do_resize=False, return_tensors="np")


def assert_equal(data: bytes) -> None:
    expected, actual = published(data), ours(data)
    assert actual["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()
    assert (actual["pixel_values"] == expected["pixel_values"]).all()


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.png")), ids=lambda path: path.name)
def test_the_reference_images_are_read_as_the_published_code_reads_them(path):
    assert_equal(path.read_bytes())


@pytest.mark.parametrize("size", [(10, 10), (100, 60), (640, 480), (3, 590), (1654, 2339), (2300, 40)])
def test_images_of_any_size_are_read_as_the_published_code_reads_them(size):
    assert_equal(corpus.save(corpus.noise(*size), "PNG", compress_level=1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK"])
def test_images_of_any_mode_are_read_as_the_published_code_reads_them(mode):
    noise = corpus.noise(333, 222, mode=mode) if mode == "RGBA" else corpus.noise(333, 222).convert(mode)
    assert_equal(corpus.save(noise, "JPEG" if mode == "CMYK" else "PNG"))


def test_a_photo_is_read_as_the_published_code_reads_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    blurred = corpus.noise(80, 60).resize((1300, 975), Image.Resampling.BICUBIC)
    assert_equal(corpus.save(blurred, "JPEG", quality=85, exif=exif))

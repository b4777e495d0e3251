"""Images for the benchmarks, at the size that a model reads: no files, no decoder, the same in every run."""

import numpy as np

from model import DecodedImage, ImageSpec


def noise_image(spec: ImageSpec, rows: int, columns: int, *, seed: int) -> DecodedImage:
    """An image of so many rows and columns of tokens: coarse blocks of colour under fine noise, as photographs
    have areas and grain."""
    random = np.random.default_rng(seed)
    side = spec.token_side
    blocks = random.integers(0, 256, (-(-rows // 4), -(-columns // 4), 3))
    areas = blocks.repeat(4 * side, axis=0).repeat(4 * side, axis=1)[: rows * side, : columns * side]
    grain = random.normal(0, 12, areas.shape)
    return DecodedImage(pixels=np.clip(areas + grain, 0, 255).astype(np.uint8), num_tokens=rows * columns)

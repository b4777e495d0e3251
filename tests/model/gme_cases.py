"""The tiny GME checkpoint and the vectors that transformers 4.51.3 computed from it, by the authors' inference code."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from model import DecodedImage, EmbeddingInput, Features, ModelInfo, Preparer
from model.encoder import TransformerEncoder

DATA = Path(__file__).parents[1] / "data"
FOLDER = DATA / "tiny-gme"
TOLERANCE = 2e-6
TOKEN_SIDE = 28

DEFAULT_INSTRUCTION = "You are a helpful assistant."

_REFERENCE: dict[str, Any] = json.loads((DATA / "gme_reference" / "reference.json").read_text())

LONG_TEXT = "the quick brown fox jumps over the lazy dog " * 400
TRUNCATED = np.array(_REFERENCE["reference_truncation_at_1800"]["embedding"], dtype=np.float32)
"""What the authors' code gives for ``LONG_TEXT``: it reads the first 1,800 tokens, and so drops the template's end."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input, and what it must become."""

    input: EmbeddingInput
    num_tokens: int
    vector: np.ndarray


@cache
def cases() -> tuple[Case, ...]:
    return tuple(
        Case(
            input=EmbeddingInput(
                text=one["text"],
                images=(decoded(one["image"]),) if one["image"] else (),
                instruction=one["instruction"],
                prompt_name="query" if one["is_query"] else "document",
            ),
            num_tokens=one["num_tokens"],
            vector=np.array(one["embedding"], dtype=np.float32),
        )
        for one in _REFERENCE["cases"]
    )


def expected() -> np.ndarray:
    return np.stack([case.vector for case in cases()])


@cache
def decoded(name: str) -> DecodedImage:
    """One of the reference's images, resized twice as the authors do: qwen-vl-utils' bounds, then the processor's."""
    image = Image.open(DATA / "gme_reference" / name).convert("RGB")
    for min_tokens, max_tokens in ((4, 16_384), (256, 1_280)):
        height, width = smart_resize(
            image.height,
            image.width,
            factor=TOKEN_SIDE,
            min_pixels=min_tokens * TOKEN_SIDE**2,
            max_pixels=max_tokens * TOKEN_SIDE**2,
        )
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return as_decoded(np.asarray(image))


def random_image(rows: int, columns: int, *, seed: int = 0) -> DecodedImage:
    """An image of so many tokens, as the model reads it."""
    random = np.random.default_rng(seed)
    return as_decoded(random.integers(0, 256, (rows * TOKEN_SIDE, columns * TOKEN_SIDE, 3), dtype=np.uint8))


def as_decoded(pixels: np.ndarray) -> DecodedImage:
    return DecodedImage(pixels=pixels, num_tokens=pixels.shape[0] * pixels.shape[1] // TOKEN_SIDE**2)


def features_of(info: ModelInfo, inputs: list[EmbeddingInput]) -> list[Features]:
    prepared = Preparer(info).prepare(inputs)
    assert all(isinstance(one, Features) for one in prepared), prepared
    return prepared


def embed(encoder: TransformerEncoder, *inputs: EmbeddingInput) -> np.ndarray:
    """All of them in one pass."""
    return encoder.encode(features_of(encoder.info, list(inputs)))

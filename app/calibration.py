"""Measures what passes take on a worker that has just loaded a model: what the cost model starts from.

From one short text up to a pass longer than any that the limits allow, doubling each time: a card needs the
same time for 8 tokens and for 500, so small passes say nothing of large ones. On a slow device the longest
allowed one is short, and measuring ends early.
"""

import logging
from collections.abc import Sequence

import numpy as np

from batching import Limits, Shape
from model import Features, ImageInputs, ModelInfo, PassOutOfMemoryError
from model.worker import Worker

logger = logging.getLogger(__name__)

INPUT_TOKENS = 128
"""Passes of texts are made of inputs of at most so much, as documents are cut in practice."""
_SMALLEST_TOKENS = 8
_NUM_SIZES = 3
"""So many sizes are measured even if the smallest takes longer than the limits allow."""
_BEYOND = 1.5
"""Times the longest pass that is allowed. The line must not end where the scheduler works."""
_LEAST_S = 1e-6

_NUM_RUNS = range(2, 6)
"""Of each pass: at least two, for the first allocates and chooses kernels, and more on a busy machine."""
_AGREEMENT = 1.25
"""Two times of one pass that differ by less were not disturbed."""
_PATIENCE_S = 2.0
"""A pass that has run for so long in all is not repeated again: a large model should start."""

_IMAGE_SIDES = (4, 12)
"""Square images, in tokens a side: small ones, because a large model takes a minute for a large image on a
CPU."""


async def measure_passes(worker: Worker, info: ModelInfo, limits: Limits) -> list[tuple[Shape, float]]:
    """Time passes of texts, and of images where the model takes them, one after the other.

    Each runs until its two shortest times agree, and the shortest counts.

    Returns:
        Shapes, and the device seconds they took. Those that find no memory are left out: in service a pass
        that large is halved.

    Raises:
        Exception: Whatever else the worker raises.
    """
    samples: list[tuple[Shape, float]] = []
    num_tokens, longest_s = _SMALLEST_TOKENS, _BEYOND * limits.max_document_pass_s
    while num_tokens <= max(limits.max_pass_tokens, _SMALLEST_TOKENS):
        of_texts = calibration_pass(num_tokens, max_tokens=info.max_tokens)
        if not await _add(samples, worker, of_texts):
            break
        if len(samples) >= _NUM_SIZES and samples[-1][1] >= longest_s:
            break
        num_tokens *= 2
    # One long text, too: what attention costs grows with the square of a length.
    longest = min(samples[-1][0].num_tokens, info.max_tokens)
    if longest > INPUT_TOKENS:  # a shorter one was measured as such
        await _add(samples, worker, [Features(token_ids=np.ones(longest, dtype=np.int32))])
    samples = undisturbed(samples)
    if info.images is not None:
        of_images = [[calibration_image(side, info.images)] for side in _IMAGE_SIDES]
        samples += [await _measure(worker, features) for features in of_images]
    return samples


async def _add(samples: list[tuple[Shape, float]], worker: Worker, features: Sequence[Features]) -> bool:
    """Measure a pass of texts; false if there is no memory for it. The smallest must find some."""
    try:
        samples.append(await _measure(worker, features))
    except PassOutOfMemoryError:
        if not samples:
            raise
        logger.warning("a pass of %d tokens finds no memory", shape_of(features).num_tokens)
        return False
    return True


async def _measure(worker: Worker, features: Sequence[Features]) -> tuple[Shape, float]:
    times_s: list[float] = []
    while not _is_enough(times_s):
        times_s.append((await worker.run(features)).device_s)
    return shape_of(features), max(min(times_s), _LEAST_S)


def _is_enough(times_s: Sequence[float]) -> bool:
    if len(times_s) < _NUM_RUNS.start:
        return False
    if len(times_s) == _NUM_RUNS.stop - 1 or sum(times_s) >= _PATIENCE_S:
        return True
    shortest_s, next_s = sorted(times_s)[:2]
    return next_s <= _AGREEMENT * shortest_s


def undisturbed(samples: Sequence[tuple[Shape, float]]) -> list[tuple[Shape, float]]:
    """Samples of texts without what cannot be: that less work takes longer than more of it.

    A machine that was busy for a moment makes any pass long, and none short.
    """
    return [
        (
            shape,
            min(
                other_s
                for other, other_s in samples
                if other.num_tokens >= shape.num_tokens and other.num_squared >= shape.num_squared
            ),
        )
        for shape, _ in samples
    ]


def calibration_pass(num_tokens: int, *, max_tokens: int) -> list[Features]:
    """A pass of so many tokens in inputs of at most ``INPUT_TOKENS``."""
    longest = min(INPUT_TOKENS, max_tokens)
    lengths = [longest] * (num_tokens // longest) + ([num_tokens % longest] if num_tokens % longest else [])
    return [Features(token_ids=np.ones(length, dtype=np.int32)) for length in lengths]


def calibration_image(token_side: int, images: ImageInputs) -> Features:
    """An input that is nothing but one grey image of so many tokens a side."""
    num_tokens = token_side**2
    side = token_side * images.spec.token_side
    tokens = images.tokens
    token_ids = np.array([*tokens.start, *[tokens.pad] * num_tokens, *tokens.end], dtype=np.int32)
    pixels = np.full((side, side, 3), 128, dtype=np.uint8)
    return Features(token_ids=token_ids, images=(pixels,), num_image_tokens=num_tokens)


def shape_of(features: Sequence[Features]) -> Shape:
    """What the duration of a pass with these inputs depends on."""
    return Shape(
        num_tokens=sum(one.num_tokens for one in features),
        num_squared=sum(one.num_tokens**2 for one in features),
        num_image_tokens=sum(one.num_image_tokens for one in features),
    )

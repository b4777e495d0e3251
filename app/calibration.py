"""Measures what passes take on a worker that has just loaded a model: what the cost model starts from.

From one short text up to a pass longer than any that the limits allow, doubling each time: a card needs the
same time for 8 tokens and for 500, so small passes say nothing of large ones. On a slow device the longest
allowed one is short, and measuring ends early.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What passes took, and how large they may be."""

    samples: tuple[tuple[Shape, float], ...]
    """Shapes of passes, and the device seconds that each took."""
    max_pass_tokens: int
    """What the limits allow, or the tokens of the largest pass of short texts that found memory."""


async def measure_passes(worker: Worker, info: ModelInfo, limits: Limits) -> Calibration:
    """Time passes of texts, and of images where the model takes them, one after the other.

    Each runs until its two shortest times agree, and the shortest counts. Those that find no memory are left
    out. Where short texts did not, passes may be no larger than the largest that did: one that is composed
    too large is lost, and its inputs run again in halves.

    Raises:
        PassOutOfMemoryError: The smallest pass finds no memory.
        Exception: Whatever else the worker raises.
    """
    smallest = calibration_pass(_SMALLEST_TOKENS, max_tokens=info.max_tokens)
    texts = [await _measure(worker, smallest)]
    num_tokens, longest_s = 2 * _SMALLEST_TOKENS, _BEYOND * limits.max_document_pass_s
    max_pass_tokens = limits.max_pass_tokens
    while num_tokens <= limits.max_pass_tokens:
        if len(texts) >= _NUM_SIZES and texts[-1][1] >= longest_s:
            break
        found = await _try_measure(worker, calibration_pass(num_tokens, max_tokens=info.max_tokens))
        if not found:
            max_pass_tokens = texts[-1][0].num_tokens
            logger.warning("passes are kept to %d tokens", max_pass_tokens)
            break
        texts += found
        num_tokens *= 2
    # One long text, too: what attention costs grows with the square of a length.
    longest = min(texts[-1][0].num_tokens, info.max_tokens)
    if longest > INPUT_TOKENS:  # a shorter one was measured as such
        texts += await _try_measure(worker, [Features(token_ids=np.ones(longest, dtype=np.int32))])
    samples = undisturbed(texts)
    if info.images is not None:
        for side in _IMAGE_SIDES:
            samples += await _try_measure(worker, [calibration_image(side, info.images)])
    return Calibration(samples=tuple(samples), max_pass_tokens=max_pass_tokens)


async def _try_measure(worker: Worker, features: Sequence[Features]) -> list[tuple[Shape, float]]:
    """Measure a pass; nothing comes back if there is no memory for it."""
    try:
        return [await _measure(worker, features)]
    except PassOutOfMemoryError:
        logger.warning("a pass of %d tokens finds no memory", shape_of(features).num_tokens)
        return []


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

"""Which size an image gets, and how many tokens that is: pure arithmetic, done before a pixel is read.

Rule 1: the numbers are the published code's to the last pixel, banker's rounding and order of operations
included, because a vector belongs to one size of its image.

Sources: ``smart_resize`` of qwen-vl-utils as GME-Qwen2-VL carries it in its ``fetch_image`` (the rule that
clamps), and of transformers 5.23, ``Qwen2VLImageProcessor`` (the one that raises).
"""

import math

from model.errors import ImageAspectError
from model.images.spec import ImageSpec, ResizeRule

Size = tuple[int, int]
"""Width and height in pixels, as Pillow orders them."""


def target_sizes(width: int, height: int, spec: ImageSpec) -> tuple[Size, ...]:
    """The size after each of the spec's resizes; the last one is what the model reads.

    Args:
        width: Pixels of the upright image, at least 1.
        height: The same.
        spec: What the model wants.

    Raises:
        ImageAspectError: A rule that does not clamp was given a side of more than ``max_aspect_ratio``
            times the other.
    """
    sizes: list[Size] = []
    for rule in spec.resizes:
        width, height = _resized(width, height, rule, spec)
        sizes.append((width, height))
    return tuple(sizes)


def num_tokens_at(size: Size, spec: ImageSpec) -> int:
    """Tokens of an image that already has the size the model reads."""
    width, height = size
    return (width // spec.token_side) * (height // spec.token_side)


def _resized(width: int, height: int, rule: ResizeRule, spec: ImageSpec) -> Size:
    side = spec.token_side
    min_pixels, max_pixels = rule.min_tokens * side**2, rule.max_tokens * side**2
    if not rule.clamps_aspect and _aspect_ratio(width, height) > spec.max_aspect_ratio:
        raise ImageAspectError(width=width, height=height, max_aspect_ratio=spec.max_aspect_ratio)
    # A side of half a token rounds to nothing. transformers goes on with that (the image is enlarged below,
    # nothing being too few pixels); qwen-vl-utils makes it one token first.
    smallest = side if rule.clamps_aspect else 0
    new_width = max(smallest, round(width / side) * side)
    new_height = max(smallest, round(height / side) * side)
    if new_width * new_height > max_pixels:
        factor = math.sqrt((height * width) / max_pixels)
        new_width = max(side, math.floor(width / factor / side) * side)
        new_height = max(side, math.floor(height / factor / side) * side)
    elif new_width * new_height < min_pixels:
        factor = math.sqrt(min_pixels / (height * width))
        new_width = math.ceil(width * factor / side) * side
        new_height = math.ceil(height * factor / side) * side
    if rule.clamps_aspect:
        return _clamped(new_width, new_height, spec.max_aspect_ratio)
    return new_width, new_height


def _clamped(width: int, height: int, max_ratio: float) -> Size:
    return min(width, int(height * max_ratio)), min(height, int(width * max_ratio))


def _aspect_ratio(width: int, height: int) -> float:
    return max(width, height) / min(width, height)

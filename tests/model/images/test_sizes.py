"""Target sizes against transformers' own function, and against what GME's code does before it."""

import math
import random

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from model.errors import ImageAspectError
from model.images import ImageSpec, ResizeRule, target_sizes
from model.images.sizes import num_tokens_at
from tests.model.images.conftest import GME

TOKEN_PIXELS = 28 * 28


def random_sizes(seed: int, count: int) -> list[tuple[int, int]]:
    """Of every scale, short sides below half a token among them, none longer than 200 to 1."""
    numbers = random.Random(seed)
    sizes: list[tuple[int, int]] = []
    while len(sizes) < count:
        width, height = (round(2 ** numbers.uniform(0, 13)) for _ in range(2))
        if max(width, height) <= 200 * min(width, height):
            sizes.append((width, height))
    return sizes


def processor_size(width: int, height: int, rule: ResizeRule) -> tuple[int, int]:
    bounds = {"min_pixels": rule.min_tokens * TOKEN_PIXELS, "max_pixels": rule.max_tokens * TOKEN_PIXELS}
    new_height, new_width = smart_resize(height, width, factor=28, **bounds)
    return new_width, new_height


def fetched_size(width: int, height: int) -> tuple[int, int]:
    """What GME's ``fetch_image`` makes of an image: 4 to 16384 tokens, at most 200 to 1."""
    sides = [max(28, round(side / 28) * 28) for side in (width, height)]
    num_pixels = sides[0] * sides[1]
    if num_pixels > 16384 * TOKEN_PIXELS:
        beta = math.sqrt((height * width) / (16384 * TOKEN_PIXELS))
        sides = [math.floor(side / beta / 28) * 28 for side in (width, height)]
    elif num_pixels < 4 * TOKEN_PIXELS:
        beta = math.sqrt(4 * TOKEN_PIXELS / (height * width))
        sides = [math.ceil(side * beta / 28) * 28 for side in (width, height)]
    if max(sides) / min(sides) > 200:
        shorter = min(sides)
        sides = [200 * shorter if side > shorter else shorter for side in sides]
    return sides[0], sides[1]


@pytest.mark.parametrize(
    ("size", "first", "second", "num_tokens"),
    [
        ((100, 60), (112, 56), (644, 336), 276),
        ((640, 480), (644, 476), (644, 476), 391),
        ((1600, 1200), (1596, 1204), (1148, 868), 1271),
        ((1654, 2339), (1652, 2352), (812, 1176), 1218),
        ((10, 10), (56, 56), (448, 448), 256),
    ],
)
def test_known_images_get_the_sizes_of_the_authors_code(size, first, second, num_tokens):
    """Worked out with the author's inference code on transformers 4.51.3."""
    assert target_sizes(*size, GME) == (first, second)
    assert num_tokens_at(second, GME) == num_tokens


@pytest.mark.parametrize(("min_tokens", "max_tokens"), [(256, 1280), (4, 1280), (4, 16384), (1, 40)])
def test_a_rule_that_does_not_clamp_is_transformers_own(min_tokens, max_tokens):
    rule = ResizeRule(min_tokens=min_tokens, max_tokens=max_tokens, clamps_aspect=False)
    spec = ImageSpec(patch_size=14, merge_size=2, resizes=(rule,))
    for width, height in random_sizes(seed=min_tokens, count=1000):
        assert target_sizes(width, height, spec) == (processor_size(width, height, rule),), (width, height)


def test_both_resizes_are_those_of_fetch_image_and_the_processor():
    """Leaving the first out would give other sizes for half of all images."""
    differing = 0
    for width, height in random_sizes(seed=1, count=2000):
        first = fetched_size(width, height)
        second = processor_size(*first, GME.resizes[1])
        assert target_sizes(width, height, GME) == (first, second), (width, height)
        differing += second != processor_size(width, height, GME.resizes[1])
    assert differing > 500


@pytest.mark.parametrize("size", [(20_000, 3), (3, 20_000), (90_000, 450), (60_000, 299), (450, 90_000)])
def test_the_first_rule_clamps_what_is_too_long(size):
    """Rounding alone can make an image longer than 200 to 1 that was not."""
    first, _ = target_sizes(*size, GME)
    assert first == fetched_size(*size)
    assert max(first) == 200 * min(first)


def test_a_rule_that_does_not_clamp_refuses_what_is_too_long():
    spec = ImageSpec(patch_size=14, merge_size=2, resizes=GME.resizes[1:])
    with pytest.raises(
        ImageAspectError, match=r"the image is 20,100 x 100 pixels; the long side must be at "
    ):
        target_sizes(20_100, 100, spec)
    assert target_sizes(20_000, 100, spec)


def test_other_patches_make_other_sizes():
    """Qwen3-VL has tokens of 32 pixels."""
    rule = ResizeRule(min_tokens=4, max_tokens=100, clamps_aspect=False)
    spec = ImageSpec(patch_size=16, merge_size=2, resizes=(rule,))
    assert target_sizes(640, 320, spec) == ((448, 224),)
    assert num_tokens_at((448, 224), spec) == 98

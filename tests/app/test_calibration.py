"""What is measured when a model has been loaded: enough to know what the longest allowed pass takes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import cast

import numpy as np
import pytest

from app.calibration import calibration_image, calibration_pass, measure_passes, shape_of, undisturbed
from app.pass_limits import batching_limits
from app.settings import BatchingSettings
from batching import CostModel, Shape
from model import Features, PassOutOfMemoryError
from model.worker import Worker
from model.worker.protocol import PassResult
from tests.app.fakes import INFO, MULTIMODAL

LIMITS = replace(batching_limits(BatchingSettings(), is_cuda=True), max_document_pass_s=0.06)
CARD_S = 1 / 33_000
"""A token on the card that is imitated here."""


def card_s(shape: Shape) -> float:
    """A 7B model on a large card: under 660 tokens nothing but launching its kernels."""
    return max(0.02, CARD_S * shape.num_tokens) + 4.7e-10 * shape.num_squared


@dataclass(slots=True)
class TimedWorker:
    """Takes the time it is told to take, and ten times that on the first pass of a shape."""

    seconds_of: Callable[[Shape], float]
    shapes: list[Shape] = field(default_factory=list[Shape])

    @property
    def num_runs(self) -> list[int]:
        """Of each shape."""
        return list(Counter(self.shapes).values())

    async def run(self, features: Sequence[Features]) -> PassResult:
        shape = shape_of(features)
        is_cold = shape not in self.shapes
        self.shapes.append(shape)
        device_s = self.seconds_of(shape) * (10 if is_cold else 1)
        return PassResult(rows=np.zeros((len(features), 2), dtype=np.float32), device_s=device_s)


async def measured(
    seconds_of: Callable[[Shape], float], *, info=INFO, limits=LIMITS
) -> tuple[TimedWorker, CostModel]:
    worker, cost = TimedWorker(seconds_of), CostModel()
    cost.fit((await measure_passes(cast("Worker", worker), info, limits)).samples)
    return worker, cost


async def test_the_slope_of_a_card_is_found_beyond_its_floor():
    """Measured up to 512 tokens only, a pass of 4,096 would be taken for one of 20 ms, and take 124."""
    worker, cost = await measured(card_s, info=replace(INFO, max_tokens=8_192))
    for num_tokens in (8, 400, 1_000, 2_000, 4_000):
        shape = Shape(num_tokens=num_tokens, num_squared=num_tokens * 400)
        assert cost.predict_s(shape) == pytest.approx(card_s(shape), rel=0.05)
    assert max(shape.num_tokens for shape in worker.shapes) == 4_096


async def test_what_one_long_text_costs_is_found():
    _, cost = await measured(card_s, info=replace(INFO, max_tokens=8_192))
    long = Shape(num_tokens=8_192, num_squared=8_192**2)
    assert cost.predict_s(long) == pytest.approx(card_s(long), rel=0.05)


async def test_a_slow_device_is_not_measured_for_minutes():
    """A large model on a CPU: three short passes tell enough."""
    worker, cost = await measured(lambda shape: 0.1 + 0.05 * shape.num_tokens)
    assert max(shape.num_tokens for shape in worker.shapes) == 32
    assert cost.predict_s(Shape(num_tokens=100)) == pytest.approx(5.1, rel=0.05)


async def test_a_machine_that_is_busy_now_and_then_does_not_bend_the_line():
    """Two of three runs are disturbed, each by more than the one before, as by a build beside the server."""
    runs = count()

    def seconds(shape: Shape) -> float:
        run = next(runs)
        return 0.002 + 3e-5 * shape.num_tokens + (0.0 if run % 3 == 2 else 0.02 * 1.5**run % 0.7)

    _, cost = await measured(seconds)
    for num_tokens in (8, 100, 1_000):
        assert cost.predict_s(Shape(num_tokens=num_tokens)) == pytest.approx(
            0.002 + 3e-5 * num_tokens, rel=0.1
        )


async def test_a_pass_whose_times_agree_is_not_run_again():
    worker, _ = await measured(lambda shape: 1e-3 * shape.num_tokens, info=replace(INFO, max_tokens=100))
    # Once cold, then twice alike.
    assert set(worker.num_runs) == {3}


async def test_a_pass_of_seconds_is_not_repeated_until_it_agrees():
    """A large model on a CPU should start, if with a line that its real passes have to mend."""
    worker, _ = await measured(lambda shape: 1.0 + shape.num_tokens, info=replace(INFO, max_tokens=100))
    assert set(worker.num_runs) == {2}


def test_less_work_is_not_taken_to_last_longer_than_more():
    small, long, many = (
        Shape(num_tokens=8, num_squared=64),
        Shape(num_tokens=256, num_squared=65_536),
        Shape(num_tokens=512, num_squared=65_536 // 2),
    )
    assert undisturbed([(small, 0.7), (many, 0.02), (long, 0.03)]) == [
        (small, 0.02), (many, 0.02), (long, 0.03),
    ]  # fmt: skip


async def test_a_pass_of_calibration_is_no_larger_than_memory_was_said_to_bear():
    worker, _ = await measured(lambda _shape: 1e-4, limits=replace(LIMITS, max_pass_tokens=1_000))
    assert max(shape.num_tokens for shape in worker.shapes) == 512


async def test_passes_become_no_larger_than_the_largest_that_found_memory(caplog: pytest.LogCaptureFixture):
    """Composed larger, each of them would be lost, and its inputs run again in halves, for ever."""

    def seconds(shape: Shape) -> float:
        if shape.num_squared > 1_000_000 or shape.num_tokens > 1_500:
            raise PassOutOfMemoryError("no memory for the pass")
        return card_s(shape)

    worker = TimedWorker(seconds)
    info = replace(INFO, max_tokens=8_192)
    calibration = await measure_passes(cast("Worker", worker), info, LIMITS)
    assert calibration.max_pass_tokens == 1_024
    # One text of 1,024 tokens found none either, which says nothing of many short ones.
    assert [shape.num_tokens for shape, _ in calibration.samples] == [8, 16, 32, 64, 128, 256, 512, 1_024]
    assert [record.getMessage() for record in caplog.records] == [
        "a pass of 2048 tokens finds no memory",
        "passes are kept to 1024 tokens",
        "a pass of 1024 tokens finds no memory",
    ]


async def test_where_all_find_memory_passes_are_what_the_limits_allow():
    """The end of measuring says nothing: a slow device is not measured any further."""
    worker = TimedWorker(lambda shape: 0.1 + 0.05 * shape.num_tokens)
    calibration = await measure_passes(cast("Worker", worker), INFO, LIMITS)
    assert calibration.max_pass_tokens == LIMITS.max_pass_tokens


async def test_images_that_find_no_memory_are_left_out():
    """A start that failed for the second, larger one would serve nobody, not even texts."""

    def seconds(shape: Shape) -> float:
        if shape.num_image_tokens > 100:
            raise PassOutOfMemoryError("no memory for the pass")
        return 0.001 + 1e-4 * shape.num_tokens + 1e-3 * shape.num_image_tokens

    worker, cost = await measured(seconds, info=MULTIMODAL)
    assert {shape.num_image_tokens for shape in worker.shapes} == {0, 16, 144}
    shape = Shape(num_tokens=300, num_image_tokens=250)
    assert cost.predict_s(shape) == pytest.approx(0.001 + 0.03 + 0.25, rel=0.05)


async def test_a_model_without_memory_for_the_smallest_pass_does_not_start():
    def seconds(_shape: Shape) -> float:
        raise PassOutOfMemoryError("no memory for the pass")

    with pytest.raises(PassOutOfMemoryError):
        await measured(seconds)


async def test_images_are_priced_where_a_model_takes_them():
    worker, cost = await measured(
        lambda shape: 0.001 + 1e-4 * shape.num_tokens + 1e-3 * shape.num_image_tokens, info=MULTIMODAL
    )
    assert any(shape.num_image_tokens for shape in worker.shapes)
    shape = Shape(num_tokens=300, num_image_tokens=250)
    assert cost.predict_s(shape) == pytest.approx(0.001 + 0.03 + 0.25, rel=0.05)


@pytest.mark.parametrize(
    ("num_tokens", "max_tokens", "lengths"),
    [(8, 512, [8]), (256, 512, [128, 128]), (64, 30, [30, 30, 4]), (512, 8, [8] * 64)],
)
def test_a_calibration_pass_has_the_tokens_it_says(num_tokens: int, max_tokens: int, lengths: list[int]):
    made = calibration_pass(num_tokens, max_tokens=max_tokens)
    assert [one.num_tokens for one in made] == lengths


def test_an_image_of_calibration_has_as_many_tokens_as_its_pixels_say():
    images = MULTIMODAL.images
    assert images is not None
    one = calibration_image(4, images)
    side = 4 * images.spec.token_side
    assert one.images[0].shape == (side, side, 3)
    assert (one.token_ids == images.tokens.pad).sum() == one.num_image_tokens == 16
    num_tokens = 16 + len(images.tokens.start) + len(images.tokens.end)
    assert shape_of([one, one]) == Shape(
        num_tokens=2 * num_tokens, num_squared=2 * num_tokens**2, num_image_tokens=32
    )

"""The cost model finds the line it was shown, follows the device, and knows how wrong it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching import CostModel, Shape


def shape(num_tokens: int) -> Shape:
    return Shape(num_tokens=num_tokens)


def fitted(*samples: tuple[int, float]) -> CostModel:
    cost = CostModel()
    cost.fit([(shape(num_tokens), device_s) for num_tokens, device_s in samples])
    return cost


@given(
    fixed_s=st.floats(0, 0.1),
    per_token_s=st.floats(1e-6, 1e-3),
    sizes=st.lists(st.integers(1, 8192), min_size=2, max_size=8, unique=True),
)
def test_a_line_is_found_from_any_two_sizes_on_it(fixed_s: float, per_token_s: float, sizes: list[int]):
    cost = fitted(*((size, fixed_s + per_token_s * size) for size in sizes))
    for size in sizes:
        assert cost.predict_s(shape(size)) == pytest.approx(fixed_s + per_token_s * size, rel=1e-3)


@given(
    st.lists(st.tuples(st.integers(1, 8192), st.floats(1e-5, 10)), min_size=1, max_size=8),
    st.integers(0, 100_000),
)
def test_a_prediction_is_never_negative_whatever_was_measured(
    samples: list[tuple[int, float]], num_tokens: int
):
    """Noise can make a larger pass look cheaper; the line through it must not fall below zero."""
    assert fitted(*samples).predict_s(shape(num_tokens)) >= 0


def test_passes_that_get_faster_with_size_are_taken_for_a_fixed_cost():
    cost = fitted((10, 0.02), (1000, 0.01))
    assert cost.predict_s(shape(10)) == cost.predict_s(shape(1000))
    assert 0.01 < cost.predict_s(shape(10)) < 0.02


def test_a_fixed_cost_below_zero_becomes_zero():
    cost = fitted((10, 0.001), (100, 0.020))
    assert cost.predict_s(shape(0)) == 0
    assert cost.predict_s(shape(100)) > 9 * cost.predict_s(shape(10))


def test_samples_of_one_size_are_put_down_to_the_tokens():
    cost = fitted((100, 0.1), (100, 0.1))
    assert cost.predict_s(shape(50)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "a cost model is fitted from at least one sample"),
        ([(5, 0.0)], "a pass of 5 tokens is said to have taken 0.0 s"),
        ([(5, float("nan"))], "a pass of 5 tokens is said to have taken nan s"),
    ],
)
def test_samples_that_say_nothing_are_refused(samples: list[tuple[int, float]], message: str):
    with pytest.raises(ValueError, match=message):
        fitted(*samples)


def test_a_device_that_becomes_half_as_fast_is_followed():
    cost = fitted((10, 0.02), (100, 0.11))
    for _ in range(40):
        cost.observe(shape(50), 2 * 0.06)
    assert cost.predict_s(shape(100)) == pytest.approx(0.22, rel=0.05)


def test_the_first_pass_counts_in_full_where_nothing_was_measured_before():
    cost = CostModel(fixed_s=0.001, per_token_s=0.0)
    cost.observe(shape(100), 0.5)
    assert cost.predict_s(shape(100)) == pytest.approx(0.5)


def test_one_pass_that_took_a_hundred_times_as_long_moves_the_prediction_by_58_percent():
    cost = fitted(*((size, 0.001 * size) for size in range(10, 200, 10)))
    cost.observe(shape(100), 10.0)
    assert cost.predict_s(shape(100)) == pytest.approx(0.1 * 100**0.1)


@pytest.mark.parametrize("device_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_teaches_nothing(device_s: float):
    """One of them in the factor would spoil every prediction from then on."""
    cost = fitted((10, 0.02), (100, 0.11))
    cost.observe(shape(10), device_s)
    assert cost.predict_s(shape(100)) == pytest.approx(0.11)


def test_the_residual_says_how_much_longer_than_predicted_passes_took():
    cost = fitted((10, 0.01), (100, 0.1))
    assert cost.residual() == pytest.approx(0, abs=1e-9)
    cost.observe(shape(100), 0.15)
    assert cost.residual() == pytest.approx(0.5)
    assert cost.residual(quantile=0.5) == pytest.approx(0, abs=1e-9)
    assert CostModel().residual() == 0


def test_a_backlog_costs_as_many_fixed_parts_as_it_needs_passes():
    cost = CostModel(fixed_s=1.0, per_token_s=0.01)
    caps = {"pass_s": 2.5, "max_tokens": 1_000, "max_entries": 50}

    def backlog_s(num_tokens: int, num_entries: int, **changes: int) -> float:
        work = shape(num_tokens)
        num_passes = cost.count_passes(work, num_entries=num_entries, **(caps | changes))
        return cost.predict_backlog_s(work, num_passes=num_passes)

    assert backlog_s(1000, 10) == pytest.approx(7 * 1.0 + 10)  # 1.5 s of work fit into a pass
    assert backlog_s(1000, 10, max_tokens=100) == pytest.approx(10 * 1.0 + 10)
    assert backlog_s(1000, 100, max_entries=5) == pytest.approx(20 * 1.0 + 10)
    assert backlog_s(0, 0) == 0


def test_a_pass_may_be_twice_what_it_costs_empty_whatever_was_asked_for():
    """On a day when the device is ten times slower a bound of 30 ms would leave no room for work at all."""
    assert CostModel(fixed_s=1.0, per_token_s=0.01).room_s(0.03) == pytest.approx(1.0)


def test_what_a_floor_pays_for_anyway_is_room():
    assert CostModel(fixed_s=1.0, per_token_s=0.01, floor_s=5.0).room_s(3.0) == pytest.approx(4.0)
    assert CostModel(fixed_s=1.0, per_token_s=0.01, floor_s=5.0).predict_s(shape(10)) == 5.0


@given(
    floor_tokens=st.integers(200, 800),
    per_token_s=st.floats(1e-5, 1e-3),
    noise=st.floats(0.0, 0.02),
)
def test_a_floor_is_found_where_small_passes_all_take_the_same(floor_tokens, per_token_s, noise):
    """A GPU waits for the launches of a small pass, and a sum of terms would be twice too high there."""
    sizes = (8, 64, 128, 1024, 2048, 4096, 8192)
    cost = fitted(
        *(
            (size, per_token_s * max(floor_tokens, size) * (1 + noise * (-1) ** i))
            for i, size in enumerate(sizes)
        )
    )
    for size in sizes:
        assert cost.predict_s(shape(size)) == pytest.approx(per_token_s * max(floor_tokens, size), rel=0.05)
    assert cost.floor_s == pytest.approx(per_token_s * floor_tokens, rel=0.05)


def test_noise_on_a_line_is_not_taken_for_a_floor():
    cost = fitted((8, 0.0071), (64, 0.0131), (128, 0.0220), (256, 0.0401), (512, 0.0760))
    assert cost.floor_s == 0


def test_one_long_text_tells_what_squares_cost():
    """Attention: 8 texts of 64 tokens have an eighth of the squares of one with 512."""
    cost = CostModel()
    cost.fit(
        [
            (
                Shape(num_tokens=size, num_squared=squares),
                0.004 + 0.0001 * size + 1e-7 * squares,
            )
            for size, squares in ((8, 64), (64, 4096), (512, 8 * 64**2), (512, 512**2))
        ]
    )
    long = cost.predict_s(Shape(num_tokens=1024, num_squared=1024**2))
    assert long == pytest.approx(0.004 + 0.1024 + 1e-7 * 1024**2, rel=1e-6)


def test_a_cost_model_prints_its_line_and_its_error():
    cost = fitted((10, 0.02), (100, 0.11))
    assert repr(cost) == "<CostModel 10 ms + 1 ms a token, p99 residual +0% over 2 passes>"


def test_an_image_costs_what_its_pass_took_beyond_its_tokens():
    """A vision tower works on an image before the text tower does: its tokens are dearer than a text's."""
    cost = CostModel()
    cost.fit(
        [
            (Shape(num_tokens=10), 0.02),
            (Shape(num_tokens=100), 0.11),
            (Shape(num_tokens=50, num_image_tokens=40), 0.06 + 0.4),
        ]
    )
    assert cost.predict_s(Shape(num_tokens=100)) == pytest.approx(0.11)
    assert cost.predict_s(Shape(num_tokens=90, num_image_tokens=80)) == pytest.approx(0.10 + 0.8)
    backlog_s = cost.predict_backlog_s(Shape(num_tokens=100, num_image_tokens=80), num_passes=2)
    assert backlog_s == pytest.approx(2 * (0.06 + 0.4))


def test_images_that_cost_nothing_extra_have_no_negative_price():
    cost = CostModel()
    cost.fit([(Shape(num_tokens=10), 0.02), (Shape(num_tokens=10, num_image_tokens=10), 0.01)])
    assert cost.predict_s(Shape(num_tokens=10, num_image_tokens=10)) == cost.predict_s(Shape(num_tokens=10))


def test_images_alone_cannot_tell_what_a_text_costs():
    with pytest.raises(ValueError, match="at least one sample without images"):
        CostModel().fit([(Shape(num_tokens=10, num_image_tokens=5), 0.1)])


def truth_s(of: Shape) -> float:
    """A card that needs 20 ms for anything, and 30 us a token."""
    return max(0.02, 30e-6 * of.num_tokens)


def test_a_slope_that_was_measured_wrong_is_put_right_by_real_passes():
    """Small passes alone were measured, and all of them took the card's floor."""
    cost = fitted((8, 0.02), (64, 0.0201), (512, 0.0199))
    assert cost.predict_s(shape(4096)) < 0.03
    sizes = (12, 700, 1300, 2100, 4000, 30)
    for number in range(70):
        size = sizes[number % len(sizes)]
        cost.observe(shape(size), truth_s(shape(size)))
    for size in (8, 20, 700, 1500, 4096):
        assert cost.predict_s(shape(size)) == pytest.approx(truth_s(shape(size)), rel=0.1)


def test_passes_of_one_size_say_nothing_of_the_others():
    cost = fitted(*((size, truth_s(shape(size))) for size in (8, 64, 512, 1024, 2048, 4096)))
    for _ in range(500):
        cost.observe(shape(1000), 0.04)
    assert cost.predict_s(shape(1000)) == pytest.approx(0.04, rel=0.1)
    assert cost.predict_s(shape(4096)) == pytest.approx(truth_s(shape(4096)), rel=0.4)


def test_a_few_passes_that_hung_do_not_bend_the_line():
    cost = fitted(*((size, truth_s(shape(size))) for size in (8, 64, 512, 1024, 2048, 4096)))
    for number in range(96):
        size = (16, 3000)[number % 2]
        cost.observe(shape(size), truth_s(shape(size)) * (100 if number % 32 == 5 else 1))
    for size in (16, 3000):
        assert cost.predict_s(shape(size)) == pytest.approx(truth_s(shape(size)), rel=0.35)


def test_images_are_corrected_by_themselves():
    cost = CostModel()
    image = Shape(num_tokens=100, num_image_tokens=90)
    cost.fit([(shape(10), 0.02), (shape(100), 0.11), (image, 0.15)])
    for number in range(64):
        cost.observe(*((shape(50), 0.06) if number % 2 else (image, 0.30)))
    assert cost.predict_s(shape(100)) == pytest.approx(0.11, rel=0.05)
    assert cost.predict_s(image) == pytest.approx(0.30, rel=0.05)

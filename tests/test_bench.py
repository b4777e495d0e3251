"""What the benchmarks compute and decide, without running one."""

from pathlib import Path

import numpy as np
import pytest

from bench.loads import lognormal_texts, longest_first, token_passes
from bench.report import Ratio, averaged, command_line, is_quiet, paired_ratio, save, spread, verdict
from model import Features


def features_of_lengths(*lengths: int) -> list[Features]:
    return [Features(token_ids=np.zeros(length, dtype=np.int32)) for length in lengths]


def lengths_of(passes: list[list[Features]]) -> list[list[int]]:
    return [[one.num_tokens for one in cut] for cut in passes]


def control(*, median: float = 1.0, low: float = 1.0, high: float = 1.0, num_rounds: int = 5) -> Ratio:
    return Ratio(median=median, low=low, high=high, num_rounds=num_rounds)


def test_an_arm_against_its_equal_is_1_without_doubt():
    seconds = [0.5, 0.7, 0.4, 0.9, 0.6]
    assert paired_ratio(seconds, seconds) == Ratio(median=1.0, low=1.0, high=1.0, num_rounds=5)


def test_a_machine_that_slows_down_for_both_arms_does_not_touch_their_ratio():
    """Why ratios are taken round by round."""
    ratio = paired_ratio([2.0, 20.0, 8.0], [1.0, 10.0, 4.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_median_and_shows_the_scatter():
    ratio = paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert ratio.median == 3.0
    assert 1.0 <= ratio.low < 3.0 < ratio.high <= 5.0


def test_arms_of_different_numbers_of_rounds_are_not_paired():
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_an_arm_run_twice_counts_as_run_in_the_middle():
    assert averaged([1.0, 4.0], [3.0, 4.0]) == [2.0, 4.0]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (control(), True),
        (control(median=1.049, low=0.901, high=1.099), True),
        (control(median=1.051), False),
        (control(median=0.94), False),
        (control(low=0.89), False),
        (control(high=1.11), False),
        (control(num_rounds=4), False),
    ],
    ids=str,
)
def test_a_run_is_quiet_only_if_its_control_is_surely_near_1(ratio: Ratio, expected: bool):
    """A median near 1 by luck does not make a run quotable, nor do too few rounds to have an interval."""
    assert is_quiet(ratio) is expected
    assert (verdict(ratio) == "quiet") is expected


def test_a_p99_needs_a_thousand_samples():
    assert spread([1.0] * 999).p99_ms is None
    assert str(spread([1.0] * 999)) == "median 1.00 ms, p99 needs 1,000 samples"


def test_a_p99_leaves_one_in_a_hundred_above_it():
    samples_ms = [float(number) for number in range(1_000)]
    p99_ms = spread(samples_ms).p99_ms
    assert p99_ms is not None
    assert sum(one > p99_ms for one in samples_ms) == 10


def test_a_noisy_run_leaves_the_stored_result_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save("load", control(), {"figure": 1}, folder=tmp_path)
    stored = (tmp_path / "load.json").read_text()
    save("load", control(high=1.3), {"figure": 2}, folder=tmp_path)
    assert (tmp_path / "load.json").read_text() == stored
    assert '"figure": 1' in stored
    assert capsys.readouterr().out.splitlines()[-1] == "not stored: TOO NOISY to quote"


def test_a_stored_result_carries_its_control(tmp_path: Path):
    save("load", control(low=0.98), {"p": spread([2.0])}, folder=tmp_path)
    stored = (tmp_path / "load.json").read_text()
    assert '"ci95": [\n      0.98,\n      1.0\n    ]' in stored
    assert '"p99": null' in stored


def test_the_card_shows_the_command_as_it_can_be_typed():
    argv = ["/somewhere/bin/python3.11", "-m", "bench.packing", "--model", "my model"]
    assert command_line(argv) == "python -m bench.packing --model 'my model'"


def test_passes_keep_the_order_and_the_budget():
    features = features_of_lengths(200, 300, 12, 500, 1, 511)
    passes = token_passes(features, 512)
    assert lengths_of(passes) == [[200, 300, 12], [500, 1], [511]]
    assert [one for cut in passes for one in cut] == features


def test_an_input_larger_than_the_budget_is_a_pass_by_itself():
    assert lengths_of(token_passes(features_of_lengths(3, 9, 2), 5)) == [[3], [9], [2]]


def test_nothing_makes_no_pass():
    assert token_passes([], 512) == []


def test_the_longest_come_first_and_equals_stay_in_order():
    assert longest_first(features_of_lengths(2, 5, 2, 9)) == [3, 1, 0, 2]


def test_texts_are_the_same_in_every_run():
    """Results of two days are comparable because the load is."""
    assert lognormal_texts(20) == lognormal_texts(20)
    assert lognormal_texts(20) != lognormal_texts(20, seed=1)


def test_texts_are_mostly_short_and_sometimes_very_long():
    num_words = sorted(len(text.split()) for text in lognormal_texts(1_001))
    assert num_words[500] == pytest.approx(40, rel=0.1)
    assert num_words[0] >= 2
    assert num_words[-1] > 400

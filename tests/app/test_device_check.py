"""What passes take on a machine is measured with the real model, and told in words that add up."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.cli import OK, run
from app.device_check import Measured, describe
from app.engine import PassTimes
from app.pass_limits import batching_limits
from app.settings import BatchingSettings
from batching import CostModel, Shape
from tests.app.fakes import INFO

LIMITS = batching_limits(BatchingSettings(), is_cuda=True)


def measured(*, can_interrupt: bool = True, num_workers: int = 2) -> Measured:
    """A card that takes 20 ms for anything, and 31.25 us a token."""
    samples = tuple(
        (Shape(num_tokens=size, num_squared=size * min(size, 128)), max(0.02, size * 31.25e-6))
        for size in (8, 64, 256, 1024, 2048, 4096)
    )
    cost = CostModel()
    cost.fit(samples)
    return Measured(
        info=replace(INFO, packing_note="packed equals single"),
        num_workers=num_workers,
        can_interrupt=can_interrupt,
        times=PassTimes(samples=samples, cost=cost, limits=LIMITS),
    )


def test_the_line_its_error_and_what_follows_from_it_are_told():
    text = "\n".join(describe(measured()))
    assert "A pass takes 0.00 ms + 31.2 us a token, and never under 20.0 ms." in text
    assert re.search(r"^ +4096 +128 +- +128\.00 +128\.00 +[+-]0%$", text, re.MULTILINE)
    assert re.search(r"max_pass_ms +30 ms +960 tokens of short texts", text)
    assert "Documents in full passes: about 64,000 tokens a second." in text
    assert "A query of 16 tokens alone: 20.0 ms." in text


@pytest.mark.parametrize(
    ("can_interrupt", "words"),
    [
        (True, "break in between two layers, most often at once:\nabout 30 ms of waiting at the longest"),
        (
            False,
            "wait for the pass that runs; it cannot be interrupted:\nabout 60 ms of waiting at the longest",
        ),
    ],
)
def test_how_long_queries_wait_depends_on_whether_passes_can_be_left(can_interrupt: bool, words: str):
    assert words in "\n".join(describe(measured(can_interrupt=can_interrupt)))


def test_where_nothing_may_be_wasted_queries_wait_for_the_pass():
    """Runners could be interrupted, and the setting says no."""
    one = measured()
    never = replace(one, times=replace(one.times, limits=replace(LIMITS, interruption_share=0)))
    text = "\n".join(describe(never))
    assert (
        "it may not be interrupted (interruption_share is 0):\nabout 60 ms of waiting at the longest" in text
    )


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (
            [(8, 0.0108), (64, 0.0164), (1024, 0.1124)],
            "Note: passes with queries are bounded at 5 ms, which counts as 20.0 here: twice the 10.0 ms that a pass takes before it does any work.",
        ),
        (
            [(size, max(0.02, size * 31.25e-6)) for size in (8, 64, 256, 1024, 2048, 4096)],
            "Note: passes with queries are bounded at 5 ms, which counts as 20.0 here: no pass takes less.",
        ),
    ],
)
def test_a_bound_that_the_device_cannot_keep_is_told(samples: list[tuple[int, float]], words: str):
    one = measured()
    cost = CostModel()
    cost.fit(
        [(Shape(num_tokens=size, num_squared=size * min(size, 128)), took_s) for size, took_s in samples]
    )
    limits = batching_limits(BatchingSettings(max_pass_ms=5), is_cuda=True)
    text = "\n".join(describe(replace(one, times=replace(one.times, cost=cost, limits=limits))))
    assert words in text
    assert "Note" not in "\n".join(describe(one))


def test_the_command_measures_the_embedded_model():
    program = str(Path(sys.executable).with_name("laneway"))
    command = [program, "check", "--device", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "all-MiniLM-L6-v2" in done.stdout
    assert re.search(r"A pass takes [0-9.]+ ms \+ [0-9.]+ us a token", done.stdout)
    assert "1 worker\n" in done.stdout


def test_device_with_a_value_stays_a_setting(capsys):
    assert run(["check", "--device", "cpu"]) == OK
    assert re.search(r'^device +"cpu" +--device$', capsys.readouterr().out, re.MULTILINE)

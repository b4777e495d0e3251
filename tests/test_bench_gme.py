"""The benchmarks of GME and of drift: what they compute, and that they run where there is no GPU."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import drift, gme
from bench.images import noise_image
from model import CheckpointError
from model.images.spec import ImageSpec, ResizeRule
from tests.model.leaking import whole_row_attention

TINY_GME = Path(__file__).parent / "data" / "tiny-gme"
SPEC = ImageSpec(
    patch_size=14, merge_size=2, resizes=(ResizeRule(min_tokens=1, max_tokens=64, clamps_aspect=False),)
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several would wait for each other wherever other tests run beside these."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a benchmark with a command line, and gives what it prints."""

    def run(main: Callable[[], None], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(("shape", "num_parameters"), [("2b", 2_208_985_600), ("7b", 7_746_378_240)])
def test_the_shapes_are_those_of_the_published_checkpoints(shape: str, num_parameters: int):
    """Counted without an output layer, which embedding does not need. On a device that holds no numbers."""
    towers = gme.random_towers(gme.recipe_of(gme.SHAPES[shape]), device="meta", dtype=torch.float16)
    assert sum(parameter.numel() for parameter in towers.parameters()) == num_parameters
    assert {parameter.dtype for parameter in towers.parameters()} == {torch.float16}


def test_gmes_benchmark_runs_without_a_gpu_and_stores_nothing(run: Callable[..., str]):
    printed = run(
        gme.main, "--device", "cpu", "--shape", "tiny", "--dtype", "float32", "--rounds", "1", "--texts", "4",
        "--images", "1", "--quantize", "int8",
    )  # fmt: skip
    assert "random parameters" in printed
    assert "packed equals single" in printed
    for name in (gme.TEXTS, gme.SMALL, gme.LARGE, gme.FUSED):
        assert f"  {name} " in printed
    assert "not stored: this shape only shows that the benchmark runs" in printed


def test_gmes_benchmark_refuses_layers_that_let_inputs_see_each_other(monkeypatch: pytest.MonkeyPatch):
    """It goes through the gate of served models: a fast wrong vector is worth nothing."""
    monkeypatch.setattr("model.packing._segment_attention", whole_row_attention)
    with pytest.raises(CheckpointError, match="packed passes differ from single ones"):
        gme.build(gme.SHAPES["tiny"], device="cpu", dtype=torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_gmes_benchmark_says_what_to_do_without_a_gpu(run: Callable[..., str]):
    with pytest.raises(SystemExit, match="there is no CUDA device; --device cpu --shape tiny"):
        run(gme.main)


def test_drift_is_reported_for_texts_images_and_both(run: Callable[..., str]):
    printed = run(
        drift.main, "--model", str(TINY_GME), "--dtype", "float32", "--quantize", "int8", "--texts", "3",
        "--images", "2",
    )  # fmt: skip
    assert "float32, weights in int8 on cpu against float32 on cpu" in printed
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line.split()[0] != "inputs"}
    for kind, num_inputs in (("text", 3), ("image", 2), ("fused", 2)):
        _, inputs, least, mean = lines[kind]
        assert int(inputs) == num_inputs
        assert 0.999 < float(least) <= float(mean) < 1


def test_no_drift_is_a_cosine_of_one_and_the_worst_input_is_seen():
    reference = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    # The length of a vector is none of its direction.
    same = drift.drift(reference, 3 * reference)
    assert (same.num_inputs, same.least, same.mean) == (5, pytest.approx(1), pytest.approx(1))
    turned = reference.copy()
    turned[3] *= -1
    assert drift.drift(reference, turned).least == pytest.approx(-1)
    assert drift.drift(reference, turned).mean == pytest.approx(0.6)


def test_images_are_the_same_in_every_run_and_of_the_size_asked_for():
    image = noise_image(SPEC, 3, 5, seed=1)
    assert image.pixels.shape == (84, 140, 3)
    assert image.num_tokens == 15
    assert np.array_equal(image.pixels, noise_image(SPEC, 3, 5, seed=1).pixels)
    assert not np.array_equal(image.pixels, noise_image(SPEC, 3, 5, seed=2).pixels)

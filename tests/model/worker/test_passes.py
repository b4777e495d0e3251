"""What an exception under a pass means, and which rows must not be sent."""

import sys

import numpy as np
import pytest

from model.worker import LoadOptions
from model.worker.passes import Fault, judge, run_pass
from tests.model.worker.fakes import (
    NOT_FINITE,
    WRONG_SHAPE,
    features_of,
    load_fake_encoder,
    torch_with_a_lost_device,
)


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return load_fake_encoder(LoadOptions(folder=str(tmp_path), source="fake"), lambda _: None)


def test_rows_that_are_not_finite_are_named(encoder):
    result = run_pass(
        encoder, [features_of(1), features_of(NOT_FINITE), features_of(2), features_of(NOT_FINITE)]
    )
    assert result.nonfinite_rows == (1, 3)
    assert result.rows[2].tolist() == [2, 1, 0, 2]
    assert result.device_s > 0


def test_an_encoder_that_breaks_its_promise_is_caught(encoder):
    """Rows of another shape would be given to the wrong inputs, or cut in the middle."""
    with pytest.raises(
        ValueError, match=r"the encoder gave float32 rows of shape \(1, 5\), not float32 \(2, 4\)"
    ):
        run_pass(encoder, [features_of(1), features_of(WRONG_SHAPE)])


def test_rows_in_another_memory_order_are_put_straight(encoder):
    class Transposing:
        info = encoder.info

        def encode(self, features):
            return np.asfortranarray(encoder.encode(features))

        num_padding_tokens = encoder.num_padding_tokens

    result = run_pass(Transposing(), [features_of(1, 2), features_of(3)])
    assert result.rows.flags.c_contiguous
    assert result.rows.tolist() == [[1, 2, 0, 3], [3, 1, 0, 3]]


@pytest.mark.parametrize(
    ("error", "device", "fault"),
    [
        (ValueError("nonsense"), "cpu", Fault.PASS_FAILED),
        (MemoryError(), "cpu", Fault.OUT_OF_MEMORY),
        (
            RuntimeError(
                "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
            ),
            "cpu",
            Fault.OUT_OF_MEMORY,
        ),
        (ValueError("nonsense"), "cuda", Fault.PASS_FAILED),
    ],
)
def test_faults_without_torch(error, device, fault, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert judge(error, device) is fault


def test_a_device_that_fails_its_next_call_is_lost(monkeypatch):
    """The wording of the first error is not asked: the device is."""
    torch = torch_with_a_lost_device()
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert judge(ValueError("nonsense"), "cuda:1") is Fault.DEVICE_LOST
    assert judge(ValueError("nonsense"), "cpu") is Fault.PASS_FAILED
    assert judge(torch.OutOfMemoryError("CUDA out of memory"), "cuda:1") is Fault.OUT_OF_MEMORY


def test_the_wording_of_a_cpu_allocation_that_fails_is_still_torchs():
    """There is no error type for it, so its text is matched; this fails when torch changes the text."""
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert judge(caught.value, "cpu") is Fault.OUT_OF_MEMORY

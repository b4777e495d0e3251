"""What a process tells of its memory, and of its device's where it has one."""

import os
import sys

import pytest

from model.worker import DeviceMemory, InlineWorker, LoadOptions
from model.worker.memory import device_memory, gpu_uuid, rss_bytes
from tests.model.worker.fakes import (
    ALLOCATED_BYTES,
    CARD,
    LOADER,
    PEAK_BYTES,
    RESERVED_BYTES,
    features_of,
    torch_with_a_lost_device,
)

ON_CARD = DeviceMemory(
    allocated_bytes=ALLOCATED_BYTES, reserved_bytes=RESERVED_BYTES, peak_allocated_bytes=PEAK_BYTES
)


@pytest.fixture
def torch_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with_a_lost_device())


def test_a_process_has_memory_and_one_that_is_gone_has_none():
    mine = rss_bytes(os.getpid())
    assert mine is not None
    assert mine > 1_000_000
    assert rss_bytes(2**22 + 1) is None  # beyond the kernel's largest pid


@pytest.mark.usefixtures("torch_on_a_card")
def test_a_card_is_told_as_torchs_allocator_counts_and_as_nvml_names():
    assert device_memory("cuda:1") == ON_CARD
    assert gpu_uuid("cuda:1") == f"GPU-{CARD}"


@pytest.mark.usefixtures("torch_on_a_card")
def test_a_worker_on_the_cpu_of_a_machine_with_a_card_has_none():
    assert (device_memory("cpu"), gpu_uuid("cpu")) == (None, None)


def test_without_torch_there_is_no_card(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert (device_memory("cuda"), gpu_uuid("cuda")) == (None, None)


def test_the_real_torch_has_what_is_asked_of_it():
    """Without a card its answer is empty, but the names are there."""
    torch = pytest.importorskip("torch")
    assert torch.cuda.is_available() or torch.cuda.memory_stats_as_nested_dict() == {}
    assert callable(torch.cuda.get_device_properties)


@pytest.mark.usefixtures("torch_on_a_card")
async def test_an_inline_worker_tells_of_its_device_once_it_has_loaded(
    options: LoadOptions, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what the fake encoder expects of its process
    worker = InlineWorker(LoadOptions(folder=options.folder, source="fake", device="cuda:0"), loader=LOADER)
    assert worker.statistics().memory is None
    await worker.start(lambda _stage: None)
    result = await worker.run([features_of(1, 2, 3), features_of(4)])
    told = worker.statistics()
    await worker.stop()
    assert (told.memory, told.gpu_uuid, told.device) == (ON_CARD, f"GPU-{CARD}", "cuda:0")
    assert told.device_s == result.device_s


async def test_padding_is_told_with_the_rows(process_worker):
    worker = process_worker()
    await worker.start(lambda _stage: None)
    result = await worker.run([features_of(1, 2, 3), features_of(4)])
    assert result.num_padding_tokens == 2

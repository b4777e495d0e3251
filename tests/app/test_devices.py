"""Where the workers go, from what the settings say and the machine has."""

import os
from pathlib import Path

import pytest

from app.devices import Placement, place_workers, usable_cores, visible_gpus


@pytest.mark.parametrize(
    ("device", "num_workers", "num_gpus", "devices", "threads"),
    [
        ("auto", 0, 0, ("cpu",) * 4, 1),
        ("auto", 0, 2, ("cuda:0", "cuda:1"), 1),
        ("cpu", 0, 2, ("cpu",) * 4, 1),
        ("cpu", 1, 0, ("cpu",), 4),
        ("cpu", 3, 0, ("cpu",) * 3, 1),
        ("cpu", 9, 0, ("cpu",) * 9, 1),
        ("cuda", 1, 2, ("cuda:0",), 1),
        ("cuda", 3, 2, ("cuda:0", "cuda:1", "cuda:0"), 1),
        ("cuda:1", 0, 2, ("cuda:1",), 1),
        ("cuda:1", 2, 2, ("cuda:1", "cuda:1"), 1),
        ("cuda", 0, 0, ("cuda:0",), 1),
    ],
)  # fmt: skip
def test_every_core_or_gpu_gets_a_worker_unless_the_settings_say_otherwise(
    device: str, num_workers: int, num_gpus: int, devices: tuple[str, ...], threads: int
):
    placement = place_workers(
        device=device, dtype="float32", num_workers=num_workers, num_gpus=num_gpus, num_cores=4
    )
    assert placement == Placement(devices=devices, dtype="float32", threads_per_worker=threads)
    assert placement.is_cuda == ("cuda" in devices[0])


@pytest.mark.parametrize(
    ("device", "num_workers", "devices", "threads"),
    [("cpu", 0, ("cpu",), 4), ("cpu", 2, ("cpu",) * 2, 2), ("cuda", 0, ("cuda:0", "cuda:1"), 1)],
)
def test_a_large_model_is_loaded_once_on_a_cpu_unless_the_settings_say_otherwise(
    device: str, num_workers: int, devices: tuple[str, ...], threads: int
):
    """Sixteen cores would hold sixteen copies of eight gigabytes."""
    placement = place_workers(
        device=device,
        dtype="auto",
        num_workers=num_workers,
        weights_bytes=8 * 1024**3,
        num_gpus=2,
        num_cores=4,
    )
    assert placement == Placement(devices=devices, dtype="auto", threads_per_worker=threads)


def test_what_auto_means_is_left_to_those_who_know_the_model():
    """Gemma overflows in float16; here nobody has seen the checkpoint yet."""
    for num_gpus in (0, 1):
        placement = place_workers(device="auto", dtype="auto", num_workers=0, num_gpus=num_gpus, num_cores=2)
        assert placement.dtype == "auto"


@pytest.fixture
def two_gpus(tmp_path: Path) -> Path:
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
    return tmp_path / "gpus"


@pytest.mark.parametrize(
    ("visible", "num_gpus"),
    [(None, 2), ("0,1", 2), ("1", 1), ("", 0), ("-1", 0), ("0,-1,1", 1), ("0,1,2,3", 2), ("GPU-a,GPU-b", 2)],
)
def test_cudas_own_variable_hides_gpus(visible: str | None, num_gpus: int, two_gpus: Path, monkeypatch):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus(proc_folder=two_gpus) == num_gpus


def test_gpus_are_counted_by_their_device_nodes_where_proc_is_hidden(tmp_path: Path, monkeypatch):
    """As in containers that mount nothing but the devices."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus(proc_folder=tmp_path / "none", device_folder=tmp_path) == 2
    assert visible_gpus(proc_folder=tmp_path / "none", device_folder=tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("quota", "num_cores"),
    [
        ("max 100000\n", 8), ("200000 100000\n", 2), ("250000 100000\n", 2), ("50000 100000\n", 1),
        ("900000 100000\n", 8), ("", 8), ("nonsense", 8),
    ],
)  # fmt: skip
def test_a_containers_quota_is_counted_in_whole_cores(
    quota: str, num_cores: int, tmp_path: Path, monkeypatch
):
    """A worker more than the quota has cores is throttled in the middle of its passes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == num_cores


def test_without_a_quota_every_core_that_the_process_may_use_counts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 3, 5}, raising=False)
    assert usable_cores(tmp_path / "none") == 3

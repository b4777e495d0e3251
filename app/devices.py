"""Which devices there are and how many workers they get, found out without importing torch.

The gateway must know before any worker runs. What torch itself makes of a device, the worker tells when it
loads.
"""

import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

AUTO = "auto"

LARGE_WEIGHTS_BYTES = 1024**3
"""From here on a CPU has one worker with all cores, unless the settings say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the workers live."""

    devices: tuple[str, ...]
    """One worker for each, in slot order: ``("cpu", "cpu")`` or ``("cuda:0", "cuda:1")``."""
    dtype: str
    """As in the settings: what ``auto`` means for the model is known where it is loaded."""
    threads_per_worker: int

    @property
    def is_cuda(self) -> bool:
        """Whether the workers compute on GPUs."""
        return self.devices[0].startswith("cuda")


def place_workers(
    *,
    device: str,
    dtype: str,
    num_workers: int,
    weights_bytes: int = 0,
    num_gpus: int | None = None,
    num_cores: int | None = None,
) -> Placement:
    """Decide on workers from the settings and what the machine has.

    On CPU: one single-threaded worker a core. Behind the gateway two of them give some fifth more documents
    than one worker with two threads (``python -m bench.workers``: MiniLM, float32, two cores), and they never
    stall at a barrier when something else wants a core. Large models get one worker with a thread a core:
    each worker may hold weights of its own, and an image of 1,280 tokens is some 15 TFLOP (GME-2B), which a
    single core works at for a minute. On CUDA: one worker a device.

    Args:
        device: As in the settings; ``auto`` takes CUDA where there is a GPU.
        dtype: As in the settings.
        num_workers: As in the settings; 0 decides by the device.
        weights_bytes: Size of the model's files.
        num_gpus: GPUs that the workers will see. Default: those that are here.
        num_cores: Cores that the workers may use. Default: those that this process may use.
    """
    num_gpus = visible_gpus() if num_gpus is None else num_gpus
    num_cores = usable_cores() if num_cores is None else num_cores
    kind = ("cuda" if num_gpus else "cpu") if device == AUTO else device
    if kind.startswith("cuda"):
        devices = _cuda_devices(kind, num_workers, num_gpus)
        return Placement(devices=devices, dtype=dtype, threads_per_worker=1)
    num_cpu_workers = num_workers or (1 if weights_bytes > LARGE_WEIGHTS_BYTES else num_cores)
    return Placement(
        devices=(kind,) * num_cpu_workers,
        dtype=dtype,
        threads_per_worker=max(1, num_cores // num_cpu_workers),
    )


def _cuda_devices(kind: str, num_workers: int, num_gpus: int) -> tuple[str, ...]:
    # Without a GPU in sight torch is left to say so.
    names = [kind] if ":" in kind else [f"cuda:{index}" for index in range(num_gpus or 1)]
    # More workers than devices share them in turn; fewer leave the last devices alone.
    return tuple(names[slot % len(names)] for slot in range(num_workers or len(names)))


def visible_gpus(
    *, proc_folder: Path = Path("/proc/driver/nvidia/gpus"), device_folder: Path = Path("/dev")
) -> int:
    """NVIDIA GPUs that a CUDA program started here would see."""
    try:
        num_gpus = sum(1 for _ in proc_folder.iterdir())
    except OSError:
        # Some containers hide /proc/driver but mount the device nodes.
        num_gpus = sum(1 for _ in device_folder.glob("nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return num_gpus
    # CUDA reads the list up to the first name that is no device.
    listed = takewhile(lambda name: name.strip() not in ("", "-1"), visible.split(","))
    return min(num_gpus, sum(1 for _ in listed))


def usable_cores(cgroup_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity, and its container's quota rounded down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup_file.read_text().split()[:2]
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        # No cgroup v2, or "max": no quota.
        return cores

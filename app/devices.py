"""Which devices there are and how many workers they get, found out without importing torch.

The gateway must know before any worker runs. What torch itself makes of a device, the worker tells when it
loads.
"""

import os
from dataclasses import dataclass
from pathlib import Path

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the workers live."""

    devices: tuple[str, ...]
    """One worker for each, in slot order: ``("cpu", "cpu")`` or ``("cuda:0", "cuda:1")``."""
    dtype: str
    threads_per_worker: int

    @property
    def is_cuda(self) -> bool:
        """Whether the workers compute on GPUs."""
        return self.devices[0].startswith("cuda")


def place_workers(*, device: str, dtype: str, num_workers: int) -> Placement:
    """Decide on workers from the settings and this machine.

    On CPU: one single-threaded worker a core. Two of them beat one worker with two threads by 29 % (MiniLM,
    float32, two cores), and never stall at a barrier when something else wants a core. On CUDA: one worker a
    device, in float16.

    Args:
        device: As in the settings; ``auto`` takes CUDA where there is a GPU.
        dtype: As in the settings.
        num_workers: As in the settings; 0 decides by the device.
    """
    kind = ("cuda" if visible_gpus() else "cpu") if device == AUTO else device
    if kind.startswith("cuda"):
        devices = _cuda_devices(kind, num_workers)
        return Placement(devices=devices, dtype="float16" if dtype == AUTO else dtype, threads_per_worker=1)
    num_cores = usable_cores()
    num_cpu_workers = num_workers or num_cores
    return Placement(
        devices=(kind,) * num_cpu_workers,
        dtype="float32" if dtype == AUTO else dtype,
        threads_per_worker=max(1, num_cores // num_cpu_workers),
    )


def _cuda_devices(kind: str, num_workers: int) -> tuple[str, ...]:
    names = [kind] if ":" in kind else [f"cuda:{index}" for index in range(visible_gpus() or 1)]
    # More workers than devices share them in turn; fewer leave the last devices alone.
    return tuple(names[slot % len(names)] for slot in range(num_workers or len(names)))


def visible_gpus(proc_folder: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """NVIDIA GPUs that a CUDA program started here would see."""
    try:
        num_gpus = sum(1 for _ in proc_folder.iterdir())
    except OSError:
        # Some containers hide /proc/driver but mount the device nodes.
        num_gpus = sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return num_gpus
    listed = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return min(num_gpus, len(listed))


def usable_cores(cgroup_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity, and its container's quota rounded down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup_file.read_text().split()[:2]
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        # No cgroup v2, or "max": no quota.
        return cores

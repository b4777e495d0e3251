"""How much memory a process holds: as the kernel counts it (proc(5)), and on its device, as torch does."""

import os
import sys
from pathlib import Path

from model.worker.protocol import DeviceMemory

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def rss_bytes(pid: int | None = None) -> int | None:
    """Resident memory of a process, shared pages counted in full. ``None`` where there is no /proc.

    Args:
        pid: Which process; this one by default.
    """
    try:
        fields = Path("/proc", str(pid or "self"), "statm").read_text().split()
    except OSError:
        return None
    return int(fields[1]) * _PAGE_BYTES


def device_memory(device: str) -> DeviceMemory | None:
    """What torch holds of the device in this process; ``None`` where it has no allocator of its own (CPU).

    Nothing is waited for: the allocator keeps its counts on the host. The nested form, because the flat one
    is sorted by name, and this is asked after every pass.
    """
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    counts = torch.cuda.memory_stats_as_nested_dict(device)
    allocated = counts["allocated_bytes"]["all"]
    return DeviceMemory(
        allocated_bytes=allocated["current"],
        reserved_bytes=counts["reserved_bytes"]["all"]["current"],
        peak_allocated_bytes=allocated["peak"],
    )


def gpu_uuid(device: str) -> str | None:
    """The card behind a device, as NVML and nvidia-smi name it; ``None`` on a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"

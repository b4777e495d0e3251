"""How much memory a process holds, as the kernel counts it (proc(5))."""

import os
from pathlib import Path

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


def pss_bytes(pid: int | None = None) -> int | None:
    """Memory of a process, each page divided by the processes that share it: what one worker more costs.

    Args:
        pid: Which process; this one by default.
    """
    try:
        lines = Path("/proc", str(pid or "self"), "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next(line.split()[1] for line in lines if line.startswith("Pss:"))
    return int(kilobytes) * 1024

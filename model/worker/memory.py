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

"""Waiting for other processes without sleeping, and weighing them."""

import asyncio
import os
import select
from pathlib import Path

TIMEOUT_S = 20.0
"""Far beyond what anything here takes, even on a machine that is busy with something else."""


class Fifo:
    """A byte that another process sends when it has come to a point, or waits for."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Open for writing, too: a reader alone would see the end of file when a writer closes.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    async def signalled(self) -> None:
        """Return when the next byte has come."""
        loop = asyncio.get_running_loop()
        has_come = asyncio.Event()
        loop.add_reader(self._fd, has_come.set)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await has_come.wait()
        finally:
            loop.remove_reader(self._fd)
        os.read(self._fd, 1)

    def signal(self) -> None:
        """Send the other process a byte."""
        os.write(self._fd, b"!")

    def close(self) -> None:
        os.close(self._fd)


def is_gone(pidfd: int) -> bool:
    """Wait for the end of a process, zombie or reaped; ``False`` if it lives on."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        return bool(poll.poll(TIMEOUT_S * 1000))
    finally:
        os.close(pidfd)


def pss_bytes(pid: int) -> int:
    """Memory of a process, each page divided by the processes that share it (proc(5), smaps_rollup)."""
    lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    return next(_kilobytes(line) * 1024 for line in lines if line.startswith("Pss:"))


def mapped_bytes(pid: int, suffix: str) -> tuple[int, int]:
    """Resident and proportional memory of the files a process has mapped whose names end so."""
    resident = proportional = 0
    is_wanted = False
    for line in Path("/proc", str(pid), "smaps").read_text().splitlines():
        if not line.split()[0].endswith(
            ":"
        ):  # a mapping begins: address, rights, offset, device, inode, path
            is_wanted = line.endswith(suffix)
        elif is_wanted and line.startswith("Rss:"):
            resident += _kilobytes(line) * 1024
        elif is_wanted and line.startswith("Pss:"):
            proportional += _kilobytes(line) * 1024
    return resident, proportional


def _kilobytes(line: str) -> int:
    return int(line.split()[1])

"""What the gateway frees goes back to the system."""

import platform
import subprocess
import sys

import pytest

# The first block raises glibc's bound when it is freed, so that the next ones would lie on the heap, each under a
# small one that stays.
FREE_LARGE_BLOCKS = """
import sys
from app.malloc import return_large_blocks
if sys.argv[1] == "returning":
    assert return_large_blocks()
def rss_mb():
    return int(next(line for line in open("/proc/self/status") if "VmRSS" in line).split()[1]) // 1024
before = rss_mb()
first = b"x" * 30_000_000
del first
blocks, pins = [], []
for _ in range(5):
    blocks.append(b"x" * 8_000_000)
    pins.append(b"x" * 100_000)
del blocks
print(rss_mb() - before)
"""


def kept_mb(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FREE_LARGE_BLOCKS, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_large_blocks_are_returned_when_they_are_freed():
    """Who sizes a container by what it held once would pay for it for ever."""
    assert kept_mb("returning") < 10
    assert kept_mb("as it comes") > 30, "there is nothing to be cured of any more"

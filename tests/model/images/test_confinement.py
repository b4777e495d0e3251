"""What is left to somebody who has taken a decode process over: each of these is tried from inside of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.images import confinement

MEMORY_BYTES = 50_000_000

PROBE = """
import ctypes, json, os, resource, runpy, socket, sys, threading

gateway_pid, file_fd, memory_bytes = map(int, sys.argv[2:])
confinement = runpy.run_path(sys.argv[1])
PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)

def trace_gateway():
    if libc.ptrace(PTRACE_SEIZE, gateway_pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def fork():
    if os.fork() == 0:
        os._exit(0)

attempts = {
    "open a file": lambda: open("/etc/passwd"),
    "make a file": lambda: open("/tmp/laneway-was-here", "w"),
    "open a socket": socket.socket,
    "make a pipe": os.pipe,
    "copy a descriptor": lambda: os.dup(1),
    "write to a file": lambda: os.write(file_fd, b"x"),
    "start a process": fork,
    "start a thread": threading.Thread(target=print, daemon=True).start,
    "take more memory": lambda: bytearray(memory_bytes),
    "open more": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)),
    "be root": lambda: os.setuid(0),
    "name its host": lambda: socket.sethostname("mine"),
    "signal the gateway": lambda: os.kill(gateway_pid, 0),
    "trace the gateway": trace_gateway,
}
confinement["confine"](memory_bytes=memory_bytes)
succeeded = []
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, RuntimeError, MemoryError, ValueError):
        pass
    else:
        succeeded.append(name)
print(json.dumps([succeeded, os.readlink("/proc/self/ns/user"), os.getuid()]))
"""


@pytest.fixture
def confined(tmp_path: Path) -> tuple[set[str], bool, int]:
    """What succeeded in a confined process, whether it has users of its own, and as which one it runs."""
    with (tmp_path / "file").open("wb") as file:
        arguments = (confinement.__file__, os.getpid(), file.fileno(), MEMORY_BYTES)
        result = subprocess.run(
            [sys.executable, "-c", PROBE, *map(str, arguments)],
            pass_fds=[file.fileno()],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    succeeded, users, user = json.loads(result.stdout)
    return set(succeeded), users != os.readlink("/proc/self/ns/user"), user


def test_a_confined_process_can_do_next_to_nothing(confined: tuple[set[str], bool, int]):
    succeeded, has_own_users, _ = confined
    still_possible: set[str] = set()
    if not is_root_that_may_kill():  # it is the same user as before
        still_possible.add("signal the gateway")
        if not has_own_users:  # no namespaces are to be had here
            still_possible.add("trace the gateway")
        if os.getuid() == 0:
            still_possible |= {"start a process", "start a thread", "be root"}
    assert succeeded <= still_possible


def test_root_gives_its_place_up(confined: tuple[set[str], bool, int]):
    """A container's gateway is root more often than not."""
    succeeded, _, user = confined
    if not is_root_that_may_kill():
        pytest.skip("these tests do not run as root with the right to kill")
    assert user == 65_534
    assert succeeded == set()


def is_root_that_may_kill() -> bool:
    capabilities = int(confinement._own_status()["CapEff"], 16)
    return os.getuid() == 0 and bool(capabilities >> confinement._CAP_KILL & 1)


def test_a_gateway_that_could_not_kill_another_user_keeps_its_processes(monkeypatch: pytest.MonkeyPatch):
    """Else a decode that hangs would hang for ever."""
    became: list[int] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "setgroups", lambda _: None)
    monkeypatch.setattr(os, "setresgid", lambda *_: None)
    monkeypatch.setattr(os, "setresuid", lambda user, *_: became.append(user))
    everything = (1 << 41) - 1
    confinement._become_nobody(capabilities=everything & ~(1 << 5))
    assert became == []
    confinement._become_nobody(capabilities=everything)
    assert became == [65_534]

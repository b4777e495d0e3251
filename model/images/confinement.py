"""What a decode process gives up before a stranger's file comes, so that who takes it over has got little.

Confined, wherever it runs:

* It opens nothing: no file, socket or pipe. It keeps its standard streams and the gateway's socket.
* It writes into no file on a disk, and leaves no core with somebody's picture in it.
* It starts no process and no thread, unless it is root.

On Linux, besides:

* Its memory has a bound, it has no capabilities, and running a program gives it none.
* Where the gateway is root, it is nobody: it can neither signal nor trace the gateway. It stays root where it
  is not allowed to change, or the gateway could not kill it then (``--cap-drop``).
* Where the kernel allows it, it is in a network of its own, without a way out. A gateway that is not root
  needs a user namespace for that, which also keeps it from being traced.

Not confined: there is no seccomp filter, so a hole in the kernel is a way out. Where the gateway is not root,
the process can send signals to whatever runs as the same user, the gateway included. If there is no user
namespace either (Docker's own filter allows none), it can trace them, and so read the gateway's memory,
unless ``kernel.yama.ptrace_scope`` is 1 or more. It can use a core for as long as one decode may take.
"""

import contextlib
import ctypes
import os
import resource
import struct
from pathlib import Path

_NOBODY = 65_534
"""The user that owns nothing, by its number: not every container has a name for it."""

_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAP_KILL = 5


def confine(*, memory_bytes: int) -> None:
    """Give all of it up, for good. Whatever this process still has to open, it must have opened before.

    What the kernel ties to the user, such as the signal at the parent's end (prctl(2)), has to be set after.

    Args:
        memory_bytes: Address space that the process may take beyond what it has now.
    """
    status = _own_status()
    if status:
        # Only root may have a network of its own at once; everybody else has to be root somewhere else first.
        has_left = _unshare(_CLONE_NEWNET)
        _become_nobody(capabilities=int(status["CapEff"], 16))
        if not has_left:
            _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        _drop_capabilities()
        _limit(resource.RLIMIT_AS, int(status["VmSize"].split()[0]) * 1024 + memory_bytes)
    for limited in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        _limit(limited, 0)
    # A new descriptor would have a number of at least 0; those that there are stay (getrlimit(2)).
    _limit(resource.RLIMIT_NOFILE, 0)


def _own_status() -> dict[str, str]:
    """What the kernel tells of this process (proc(5)); nothing where it is not Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _unshare(namespaces: int) -> bool:
    return ctypes.CDLL(None).unshare(namespaces) == 0


def _become_nobody(*, capabilities: int) -> None:
    # A gateway that is root without the right to kill (--cap-drop) could not end a process of another user.
    if os.geteuid() != 0 or not capabilities >> _CAP_KILL & 1:
        return
    with contextlib.suppress(OSError):  # there is no such user here
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _drop_capabilities() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))


def _limit(limited: int, value: int) -> None:
    _, hard = resource.getrlimit(limited)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limited, (value, value))

"""Processes of our own: how they are started and how they ended, and what each does first when it runs.

Rule 1: a process sees the packages that its parent sees, whatever way the parent came by them, and nothing
of the folder that it happens to be started in.
Rule 2: none outlives the process that started it, and none ends before it is told to by that one.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Ctrl-C reaches the whole foreground process group, also while a process still imports, so it is ignored
# first of all.
_PREAMBLE = """\
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
arguments = json.loads(sys.argv[2])
"""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_MAX_NAME_BYTES = 15  # the kernel keeps no more (prctl(2))

# In the process that starts another -----------------------------------------------------------------------


def start_python(
    program: str, arguments: object, *, fds: Sequence[int], environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start this Python with a program.

    Args:
        program: Python code; it finds ``json``, ``signal`` and ``sys`` imported, and its ``arguments``.
        arguments: Anything that can be written as JSON.
        fds: File descriptors that it inherits, under the same numbers.
        environment: All of its environment.

    Raises:
        OSError: There is no process or memory to be had.
    """
    path = [os.path.abspath(entry) for entry in sys.path]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PREAMBLE + program, json.dumps(path), json.dumps(arguments)],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        # What a library prints belongs with the log, not into the output of whoever started it.
        stdout=sys.__stderr__,
        env=environment,
    )


def describe_exit(returncode: int, reasons: Mapping[int, str] | None = None) -> str:
    """Say how a process ended, in words that follow its name.

    Args:
        returncode: As ``subprocess`` has it: below 0 for a signal.
        reasons: What is known of return codes.
    """
    how = (
        f"exited with code {returncode}" if returncode >= 0 else f"was killed by {_signal_name(-returncode)}"
    )
    reason = (reasons or {}).get(returncode)
    return how if reason is None else f"{how} ({reason})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


# In the process that was started --------------------------------------------------------------------------


def ignore_shutdown_signals() -> None:
    """Leave shutting down to the parent, which answers its clients first.

    Ctrl-C reaches the whole process group, and systemd's default ``KillMode=control-group`` sends SIGTERM
    to every process of a service.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def die_with_parent(*, name: str) -> None:
    """Have the kernel kill this process when its parent ends, whatever it is doing, and show it by a name.

    A parent that ended before this is noticed by the end of the socket. prctl(2) is Linux's; elsewhere the
    end of the socket is all there is.
    """
    assert len(name) <= _MAX_NAME_BYTES
    with contextlib.suppress(AttributeError, OSError):
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(_PR_SET_NAME, name.encode())

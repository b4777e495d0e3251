"""The program itself as a process of its own, as `make serve` starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

LANEWAY = Path(sys.executable).parent / "laneway"
READY_WITHIN_S = 120
GOLDEN_CHECKPOINT = Path(__file__).parent / "data" / "tiny-gme"

T = TypeVar("T")


@dataclass(frozen=True)
class RunningServer:
    """A server process and where it listens."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """Ask it to end, and see that it ends well."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(*arguments: str, **variables: str) -> RunningServer:
    """Start one with these flags and variables; returns when its model answers."""
    server = launch_server(*arguments, **variables)
    wait_until_ready(server)
    return server


def launch_server(*arguments: str, **variables: str) -> RunningServer:
    """Start one; returns before its port is open."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LANEWAY_")}
    process = subprocess.Popen(
        [str(LANEWAY), "serve", *arguments, "--port", str(port)], env=environment | variables
    )
    return RunningServer(process, port)


def wait_until_ready(server: RunningServer) -> None:
    """Ask until the model is loaded; a server that ends instead fails the test at once."""

    def is_ready() -> bool:
        assert server.process.poll() is None, f"the server ended with status {server.process.returncode}"
        return is_answered(f"{server.root}/health/ready")

    wait_until(is_ready, "the server is ready", within_s=READY_WITHIN_S)


def is_answered(url: str) -> bool:
    """Whether somebody answers, and well."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def wait_until(condition: Callable[[], T], what: str, *, within_s: float = 60.0) -> T:
    """Ask another process until its answer is true, and return it."""
    deadline_s = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
    return answer

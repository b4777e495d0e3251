"""One real server for all of these tests: the program itself, as `make serve` starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from model import find_checkpoint

LANEWAY = Path(sys.executable).parent / "laneway"
READY_WITHIN_S = 120
GOLDEN_CHECKPOINT = Path(__file__).parents[1] / "data" / "tiny-gme"


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


def vocabulary_folder() -> Path:
    """Where llama-index-core keeps the cl100k vocabulary, in tiktoken's cache format."""
    import llama_index.core

    return Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"


def start_server(*arguments: str, **variables: str) -> RunningServer:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LANEWAY_")}
    process = subprocess.Popen(
        [str(LANEWAY), "serve", *arguments, "--port", str(port)], env=environment | variables
    )
    server = RunningServer(process, port)
    wait_until_ready(server)
    return server


def wait_until_ready(server: RunningServer) -> None:
    """Ask until the model is loaded; a server that ends instead fails the test at once."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        assert server.process.poll() is None, f"the server ended with status {server.process.returncode}"
        try:
            with urllib.request.urlopen(f"{server.root}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise AssertionError(f"the server was not ready within {READY_WITHIN_S} s")


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    running = start_server()
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0


@pytest.fixture(scope="session")
def image_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The tiny GME, built anew, in a cache of its own."""
    running = start_server("tiny-gme", "--workers", "1", XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")))
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0


@pytest.fixture(scope="session")
def golden_server() -> Iterator[RunningServer]:
    """The tiny checkpoint that the reference vectors were made with."""
    running = start_server(str(GOLDEN_CHECKPOINT), "--workers", "1")
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0


@pytest.fixture(scope="session")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(find_checkpoint("minilm").folder), device="cpu")


@pytest.fixture(autouse=True)
def vocabulary_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain's client tokenises by itself and would fetch the vocabulary from the network."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(vocabulary_folder()))


def assert_same_vectors(ours: object, theirs: np.ndarray) -> None:
    rows = np.asarray(ours, dtype=np.float32)
    assert rows.shape == theirs.shape
    assert np.abs(rows - theirs).max() <= 1e-5
    assert (rows * theirs).sum(1).min() >= 0.99999

"""One real server for all of these tests: the program itself, as `make serve` starts it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from model import find_checkpoint
from tests.servers import GOLDEN_CHECKPOINT, RunningServer, start_server


def vocabulary_folder() -> Path:
    """Where llama-index-core keeps the cl100k vocabulary, in tiktoken's cache format."""
    import llama_index.core

    return Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    running = start_server()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def image_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The tiny GME, built anew, in a cache of its own."""
    running = start_server("tiny-gme", "--workers", "1", XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def golden_server() -> Iterator[RunningServer]:
    """The tiny checkpoint that the reference vectors were made with."""
    running = start_server(str(GOLDEN_CHECKPOINT), "--workers", "1")
    yield running
    running.stop()


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

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model import find_checkpoint
from model.encoder import TransformerEncoder
from model.loading import load_encoder
from model.worker import LoadOptions
from tests.model import gme_cases


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """As a worker on CPU has. Several would also wait for each other wherever other tests run beside these."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The embedded default's files."""
    return find_checkpoint("minilm").folder


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> TransformerEncoder:
    return load(minilm_folder)


@pytest.fixture(scope="session")
def gme() -> TransformerEncoder:
    """The tiny GME checkpoint, in float32."""
    return load(gme_cases.FOLDER)


@pytest.fixture
def load_from() -> Callable[..., TransformerEncoder]:
    return load


def load(folder: Path, **options: object) -> TransformerEncoder:
    return load_encoder(LoadOptions(folder=str(folder), source=folder.name, **options), lambda _stage: None)

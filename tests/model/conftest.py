from collections.abc import Callable
from pathlib import Path

import pytest

from model import find_checkpoint
from model.encoder import TransformerEncoder
from model.loading import load_encoder
from model.worker import LoadOptions
from tests.model import gme_cases


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

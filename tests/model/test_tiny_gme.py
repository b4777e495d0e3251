"""The tiny GME that is built: the same bytes everywhere, and a model like any other to the loader."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from model import CheckpointError, DecodedImage, EmbeddingInput, Preparer, find_checkpoint
from model.encoder import TransformerEncoder
from model.loading import load_encoder
from model.tiny_gme import build_tiny_gme, tiny_gme_files, write_files
from model.worker import LoadOptions

FILES_SHA256 = {
    "config.json": "b2ef09eec2d42a4e2018a19e77deaadae6c4a5e8b6fe482a44d91a97bf9e578b",
    "merges.txt": "9db4efaea24dc989277ce2a6d1e46f5f41184133d558d8fb7f27c2fc9de8b7ad",
    "model.safetensors": "86c6ba50fe00dd6d5b29a0111a2bf88ae9b82124b75df7414fee307cdeb26652",
    "preprocessor_config.json": "5797fa607d453aba5c2ea658174d71de45afd0fb9c63d83ef03fb99eafcfc623",
    "tokenizer_config.json": "27e479d38082856098e4253a534f70da7a468f559e3fc8a5424fa52f1aebaa13",
    "vocab.json": "44f76e41ce3af3c65d3ff8d551426e97a28abebbb49b096ee8a0afb89d554a90",
}
"""A change here needs another RECIPE_VERSION: users' caches hold the old files under the old one."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TransformerEncoder:
    folder = tmp_path_factory.mktemp("tiny-gme")
    write_files(folder, tiny_gme_files())
    return load_encoder(LoadOptions(folder=str(folder), source="tiny-gme"), lambda _stage: None)


def test_it_is_the_same_bytes_on_every_machine(cache: Path) -> None:
    """So that vectors of two laptops can be compared, and a bug report be repeated."""
    folder = find_checkpoint("tiny-gme").folder
    assert folder == cache / "laneway" / "tiny-gme-1"
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found == FILES_SHA256


def test_a_second_start_writes_nothing(cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in build_tiny_gme().iterdir()}
    assert {path: path.stat().st_mtime_ns for path in build_tiny_gme().iterdir()} == before


def test_a_file_that_was_damaged_or_lost_is_written_anew(cache: Path) -> None:
    folder = build_tiny_gme()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    build_tiny_gme()
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found == FILES_SHA256


def test_a_cache_that_cannot_be_a_folder_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        CheckpointError,
        match=r"tiny-gme is built in the user's cache, and that cannot be written \(.*\); point",
    ):
        build_tiny_gme()


def test_its_weights_have_the_size_that_keeps_inputs_apart() -> None:
    weights = load(tiny_gme_files()["model.safetensors"])
    assert sum(weight.size for weight in weights.values()) == 190_848
    for name, weight in weights.items():
        assert weight.dtype == np.float32
        if weight.ndim > 1:
            deviation = np.sqrt(np.prod(weight.shape[1:])) * weight.std()
            assert deviation == pytest.approx(1, abs=0.05), name


def test_the_loader_takes_it_for_a_gme_and_says_that_its_vectors_mean_nothing(encoder) -> None:
    info = encoder.info
    assert (info.family, info.dimension, info.max_tokens) == ("gme", 64, 1800)
    assert info.modalities == ("text", "image")
    assert info.is_packed
    assert info.note == "Its weights are random: the vectors mean nothing. It is for trying the endpoints."


def test_every_text_and_image_has_a_vector_of_its_own(encoder) -> None:
    red, blue = (np.full((448, 448, 3), colour, dtype=np.uint8) for colour in ((220, 30, 30), (30, 30, 220)))
    inputs = [
        EmbeddingInput(text="a photo of a cat"),
        EmbeddingInput(text="日本語 🙂 \x00 <|im_end|>"),
        EmbeddingInput(images=(DecodedImage(pixels=red, num_tokens=256),)),
        EmbeddingInput(images=(DecodedImage(pixels=blue, num_tokens=256),)),
        EmbeddingInput(text="a photo of a cat", images=(DecodedImage(pixels=red, num_tokens=256),)),
    ]
    features = Preparer(encoder.info).prepare(inputs)
    rows = encoder.encode(features)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6
    assert np.abs(rows @ rows.T - np.eye(len(rows))).max() < 0.999


def test_words_of_its_vocabulary_are_one_token_and_all_bytes_are_known(encoder) -> None:
    preparer = Preparer(encoder.info)

    def num_tokens(text: str) -> int:
        [features] = preparer.prepare([EmbeddingInput(text=text)])
        return features.num_tokens

    template = num_tokens("")
    assert num_tokens(" red house") - template == 2
    assert num_tokens("".join(map(chr, range(32, 127)))) - template == 95
    assert num_tokens("🙂") - template == 4

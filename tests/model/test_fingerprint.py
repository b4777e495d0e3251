"""Equal fingerprints mean that vectors may be compared; so whatever changes one changes the fingerprint."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.images.spec import Alpha, Orientation
from model.worker.protocol import ImageOptions, Quantization, Rope
from tests.model.conftest import load
from tests.model.gme_cases import FOLDER

CHANGES = {
    "rope": {"rope": Rope.MROPE},
    "min image tokens": {"images": ImageOptions(min_tokens=4)},
    "max image tokens": {"images": ImageOptions(max_tokens=600)},
    "orientation": {"images": ImageOptions(orientation=Orientation.STORED)},
    "alpha": {"images": ImageOptions(alpha=Alpha.DROP)},
    "quantization": {"quantization": Quantization.INT8},
    "max tokens": {"max_tokens": 2_000},
    "dtype": {"dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def fingerprints() -> dict[str, str]:
    return {name: load(FOLDER, **change).info.fingerprint for name, change in CHANGES.items()}


def test_everything_that_changes_a_vector_changes_the_fingerprint(fingerprints: dict[str, str]):
    assert set(CHANGES) == set(fingerprints)
    everything = [load(FOLDER).info.fingerprint, *fingerprints.values()]
    assert len(set(everything)) == len(CHANGES) + 1


def test_where_a_checkpoint_lies_and_what_it_is_called_do_not(tmp_path: Path):
    elsewhere = Path(shutil.copytree(FOLDER, tmp_path / "gme-of-mine"))
    assert load(elsewhere).info.fingerprint == load(FOLDER).info.fingerprint
    assert (
        load(elsewhere, num_threads=4, max_prepacked_bytes=0).info.fingerprint
        == load(FOLDER).info.fingerprint
    )


def test_what_the_model_decides_anyway_may_be_said(fingerprints: dict[str, str]):
    """The same vectors, so an index is not to be made anew for it."""
    said = load(FOLDER, images=ImageOptions(min_tokens=256, max_tokens=1280), max_tokens=1800)
    assert said.info.fingerprint == load(FOLDER).info.fingerprint
    assert said.info.fingerprint not in fingerprints.values()


@pytest.mark.parametrize(
    ("version", "is_other_images"), [("13.0.1", False), ("13.1.0", True), ("12.0.0", True), ("13.10.0", True)]
)
def test_another_pillow_makes_other_vectors_of_images_alone(
    version: str, is_other_images: bool, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Pillow 13 changed a third of all values of a resized image; its corrections change none."""
    monkeypatch.setattr("PIL.__version__", "13.0.0")
    gme, minilm = load(FOLDER).info.fingerprint, load(minilm_folder).info.fingerprint
    monkeypatch.setattr("PIL.__version__", version)
    assert (load(FOLDER).info.fingerprint != gme) == is_other_images
    assert load(minilm_folder).info.fingerprint == minilm


@pytest.mark.parametrize("part", ["weights", "configuration", "tokenizer"])
def test_the_checkpoints_own_files_do(part: str, tmp_path: Path):
    folder = Path(shutil.copytree(FOLDER, tmp_path / "tiny-gme"))
    match part:
        case "weights":
            weights = load_file(folder / "model.safetensors")
            weights["visual.merger.mlp.0.bias"] += 1e-3
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        case "configuration":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
        case "tokenizer":
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
            tokenizer["model"]["merges"].pop()
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load(folder).info.fingerprint != load(FOLDER).info.fingerprint

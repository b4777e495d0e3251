"""From token ids of OpenAI's embedding models back to the text they were made of.

LangChain's ``OpenAIEmbeddings`` sends cl100k_base ids unless it is told not to. Ids of one vocabulary in
another give vectors that mean nothing, without any error, so here they become text again. That needs only the
table from id to bytes, not tiktoken: one file, looked for where other packages keep it, its hash checked.

Law: nothing is imported to find that file. A package's place is asked of the import system by its top-level
name only; asking for a submodule would run the parents' code.
"""

import asyncio
import base64
import hashlib
import importlib.util
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

CL100K_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
"""The hash tiktoken itself checks (tiktoken_ext/openai_public.py, 0.14)."""
TIKTOKEN_CACHE_NAME = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
"""The file's name in a tiktoken cache: the sha1 of its address."""
FILE_NAME = "cl100k_base.tiktoken"
SPECIAL_IDS = frozenset({100257, 100258, 100259, 100260, 100276})
"""End of text, three fill-in-the-middle marks, end of prompt. They stand for no text."""
MAX_FILE_BYTES = 16 * 1024 * 1024
"""The real file has 1.7 MB; whatever is larger need not be read to know that it is another."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class VocabularyError(Exception):
    """The cl100k_base vocabulary cannot be had. The message says what to do."""


class Cl100kIdError(Exception):
    """A token id is not in cl100k_base."""

    def __init__(self, token_id: int) -> None:
        super().__init__(f"{token_id} is not a token id of cl100k_base")
        self.token_id = token_id


class Cl100k:
    """The table from id to bytes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = tuple(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turn ids into text.

        Clients cut long texts by tokens, and a token may end inside a character (LangChain cuts at 8191:
        two of six chunks of a Japanese text do not decode strictly). What is left of a cut character at
        either end is dropped; bytes that are no UTF-8 elsewhere become U+FFFD.

        Raises:
            Cl100kIdError: An id is negative or past the table.
        """
        joined = b"".join(map(self._piece, token_ids))
        text = joined.decode("utf-8", errors="replace")
        # Only what was cut is taken away: a U+FFFD that the text really holds is three whole bytes.
        whole = REPLACEMENT.encode()
        if not joined.startswith(whole):
            text = text.lstrip(REPLACEMENT)
        if not joined.endswith(whole):
            text = text.rstrip(REPLACEMENT)
        return text

    def _piece(self, token_id: int) -> bytes:
        if 0 <= token_id < len(self._pieces):
            return self._pieces[token_id]
        if token_id in SPECIAL_IDS:
            return b""
        raise Cl100kIdError(token_id)


class Cl100kVocabulary:
    """Owns the one loaded table: found and read at the first need, off the event loop."""

    def __init__(self, path: str | None, find: Callable[[str | None], Iterator[Path]] | None = None) -> None:
        self._path = path
        self._find = find or candidate_paths
        self._loaded: Cl100k | None = None
        self._loading: asyncio.Task[Cl100k] | None = None

    def __repr__(self) -> str:
        """Whether it is loaded."""
        return f"<Cl100kVocabulary {'loaded' if self._loaded else 'not loaded'}>"

    async def get(self) -> Cl100k:
        """The table.

        Raises:
            VocabularyError: No intact file was found. It is looked for again the next time.
        """
        if self._loaded is not None:
            return self._loaded
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self._load))
            self._loading.add_done_callback(self._keep)
        # Shielded: requests share the task, and one client that leaves must not stop it for the others.
        return await asyncio.shield(self._loading)

    def _load(self) -> Cl100k:
        return load_cl100k(self._find(self._path), is_explicit=self._path is not None)

    def _keep(self, task: asyncio.Task[Cl100k]) -> None:
        self._loading = None
        if not task.cancelled() and task.exception() is None:
            self._loaded = task.result()


def load_cl100k(paths: Iterator[Path], *, is_explicit: bool = False) -> Cl100k:
    """Read the first intact file.

    Args:
        paths: Where to look, in order.
        is_explicit: The place was configured, so a file that is missing or wrong there is said to be so.

    Raises:
        VocabularyError: There is none.
    """
    for path in paths:
        content = _read(path)
        if content is not None and hashlib.sha256(content).hexdigest() == CL100K_SHA256:
            return Cl100k(parse_tiktoken(content))
        if is_explicit:
            state = "cannot be read" if content is None else "is not cl100k_base (its sha256 differs)"
            raise VocabularyError(f"the file that cl100k_path names {state}")
    raise VocabularyError("the cl100k_base vocabulary is not on this machine")


def parse_tiktoken(content: bytes) -> list[bytes]:
    """Read lines of ``BASE64 RANK``, ranks from 0 without a gap, as tiktoken writes them."""
    pieces: list[bytes] = []
    for line in content.splitlines():
        piece, rank = line.split()
        if int(rank) != len(pieces):
            raise VocabularyError(f"rank {len(pieces)} is missing in the vocabulary file")
        pieces.append(base64.b64decode(piece))
    return pieces


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.stat().st_size <= MAX_FILE_BYTES else b""
    except OSError:
        return None


# Where it may be -------------------------------------------------------------------------------------------


def candidate_paths(configured: str | None) -> Iterator[Path]:
    """Every place the file may be in; a configured path is the only one."""
    if configured is not None:
        yield Path(configured).expanduser()
        return
    yield Path(sys.prefix, "share", "laneway", FILE_NAME)
    yield default_destination()
    for cache in tiktoken_caches():
        yield cache / TIKTOKEN_CACHE_NAME
    for package, folder in _SHIPPED_IN.items():
        for root in package_folders(package):
            yield root / folder / TIKTOKEN_CACHE_NAME


_SHIPPED_IN = {
    "llama_index": "core/_static/tiktoken_cache",  # llama-index-core 0.14
    "litellm": "litellm_core_utils/tokenizers",  # litellm 1.109
}


def default_destination() -> Path:
    """Where ``laneway pull cl100k`` puts it: the user's cache folder (XDG Base Directory 0.8)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache, "laneway", FILE_NAME)


def tiktoken_caches() -> Iterator[Path]:
    """The cache folders of tiktoken itself, in its order (tiktoken/load.py, 0.14)."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if folder := os.environ.get(variable):
            yield Path(folder)
    yield Path(tempfile.gettempdir(), "data-gym-cache")


def package_folders(package: str) -> Sequence[Path]:
    """Where an installed top-level package lies, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ()
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def fetch_cl100k(
    destination: Path | None = None,
    *,
    url: str = CL100K_URL,
    sha256: str = CL100K_SHA256,
    timeout_s: float = 60.0,
) -> Path:
    """Download the vocabulary, check its hash, and put it in its place in one step.

    Returns:
        Where it is now.

    Raises:
        VocabularyError: The address cannot be reached, or sent something else.
    """
    destination = destination or default_destination()
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            content: bytes = response.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the open response, too
        raise VocabularyError(
            f"{url} cannot be reached ({error}). Copy the file to {destination}, or name it with cl100k_path."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise VocabularyError(f"{url} sent another file: its sha256 is {found}, and must be {sha256}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed: a server that looks meanwhile sees all of it or nothing.
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(destination)
    return destination

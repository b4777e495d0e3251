"""cl100k ids become text again, from a file that is found wherever it may lie."""

import asyncio
import functools
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from app import tokens
from app.tokens import (
    CL100K_SHA256,
    TIKTOKEN_CACHE_NAME,
    Cl100k,
    Cl100kIdError,
    Cl100kVocabulary,
    VocabularyError,
    candidate_paths,
    fetch_cl100k,
    load_cl100k,
    package_folders,
)

SHIPPED = [
    folder / "core/_static/tiktoken_cache" / TIKTOKEN_CACHE_NAME for folder in package_folders("llama_index")
]
VOCABULARY = next((path for path in SHIPPED if path.exists()), None)
needs_vocabulary = pytest.mark.skipif(
    VOCABULARY is None, reason="llama-index-core, which ships cl100k_base, is absent"
)


@pytest.fixture(scope="module")
def cl100k() -> Cl100k:
    assert VOCABULARY is not None
    return load_cl100k(iter([VOCABULARY]))


@pytest.fixture(scope="module")
def official() -> Iterator[tiktoken.Encoding]:
    assert VOCABULARY is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(VOCABULARY.parent))
        yield tiktoken.get_encoding("cl100k_base")


@needs_vocabulary
@given(text=st.text())
def test_a_text_survives_tiktokens_encoding(text: str, cl100k: Cl100k, official: tiktoken.Encoding):
    """What LangChain encodes must be the text that is embedded, whatever its language."""
    assert cl100k.decode(official.encode(text, disallowed_special=())) == text


@needs_vocabulary
def test_characters_cut_in_two_leave_nothing_behind(cl100k: Cl100k, official: tiktoken.Encoding):
    """LangChain cuts by tokens; a strict decoder refuses such chunks, a careless one embeds U+FFFD."""
    text = "人工知能の研究は長い歴史を持つ🙂🧭" * 20
    ids = official.encode(text)
    for cut in range(1, len(ids)):
        head, tail = cl100k.decode(ids[:cut]), cl100k.decode(ids[cut:])
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(text) - len(head) - len(tail) <= 1


@needs_vocabulary
def test_a_replacement_character_that_is_really_there_stays(cl100k: Cl100k, official: tiktoken.Encoding):
    assert cl100k.decode(official.encode("\ufffdtext\ufffd")) == "\ufffdtext\ufffd"


@needs_vocabulary
def test_special_ids_stand_for_no_text(cl100k: Cl100k):
    assert cl100k.decode([15339, 100257, 1917, 100276]) == "hello world"


@needs_vocabulary
@pytest.mark.parametrize("token_id", [-1, 100256, 100261, 100277, 2**63])
def test_an_id_outside_of_the_vocabulary_is_named(cl100k: Cl100k, token_id: int):
    """Python's own indexing would take -1 for the last token."""
    with pytest.raises(Cl100kIdError, match=f"^{token_id} is not a token id of cl100k_base$"):
        cl100k.decode([15339, token_id])


# Finding it


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is anywhere yet."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr(tokens.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(tokens, "package_folders", lambda _package: [])
    return tmp_path


def test_the_places_are_looked_through_in_order(empty_machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(empty_machine / "tiktoken"))
    monkeypatch.setattr(tokens, "package_folders", lambda package: [empty_machine / package])
    assert [str(path.relative_to(empty_machine)) for path in candidate_paths(None)] == [
        "prefix/share/laneway/cl100k_base.tiktoken",
        "cache/laneway/cl100k_base.tiktoken",
        f"tiktoken/{TIKTOKEN_CACHE_NAME}",
        f"tmp/data-gym-cache/{TIKTOKEN_CACHE_NAME}",
        f"llama_index/core/_static/tiktoken_cache/{TIKTOKEN_CACHE_NAME}",
        f"litellm/litellm_core_utils/tokenizers/{TIKTOKEN_CACHE_NAME}",
    ]


def test_a_configured_file_is_the_only_place():
    """An operator who names a file must not get another one in silence."""
    assert list(candidate_paths("/etc/cl100k")) == [Path("/etc/cl100k")]


@pytest.mark.parametrize("package", ["llama_index", "litellm", "no_such_package", "json", "sys"])
def test_packages_are_found_without_being_imported(package: str):
    """Importing llama_index takes seconds and hundreds of megabytes."""
    script = (
        "import sys; from app.tokens import package_folders; before = set(sys.modules);"
        f"package_folders({package!r}); print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@needs_vocabulary
def test_a_damaged_copy_is_passed_over(tmp_path: Path):
    assert VOCABULARY is not None
    damaged = tmp_path / "damaged"
    damaged.write_bytes(VOCABULARY.read_bytes()[:-1])
    assert load_cl100k(iter([tmp_path / "absent", tmp_path, damaged, VOCABULARY])).decode([15339]) == "hello"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file that cl100k_path names cannot be read"),
        (b"", "the file that cl100k_path names is not cl100k_base (its sha256 differs)"),
    ],
)
def test_a_configured_file_that_is_wrong_is_said_to_be_so(
    tmp_path: Path, content: bytes | None, message: str
):
    path = tmp_path / "vocabulary"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VocabularyError) as caught:
        load_cl100k(iter([path]), is_explicit=True)
    assert str(caught.value) == message


async def test_a_missing_vocabulary_is_looked_for_again(tmp_path: Path):
    """`laneway pull cl100k` beside a running server must be enough."""
    places: list[Path] = []
    vocabulary = Cl100kVocabulary(None, find=lambda _: iter(places))
    with pytest.raises(VocabularyError, match=r"^the cl100k_base vocabulary is not on this machine$"):
        await vocabulary.get()
    if VOCABULARY is not None:
        places.append(VOCABULARY)
        assert (await vocabulary.get()).decode([15339]) == "hello"
        assert repr(vocabulary) == "<Cl100kVocabulary loaded>"


@needs_vocabulary
async def test_requests_that_need_it_at_once_share_one_load():
    """It takes a tenth of a second; the first burst after a start must not do it a hundred times."""
    num_searches = 0

    def find(_: str | None) -> Iterator[Path]:
        nonlocal num_searches
        num_searches += 1
        assert VOCABULARY is not None
        return iter([VOCABULARY])

    vocabulary = Cl100kVocabulary(None, find=find)
    tables = [asyncio.create_task(vocabulary.get()) for _ in range(5)]
    await asyncio.sleep(0)
    tables[0].cancel()
    loaded = await asyncio.gather(*tables[1:])
    assert num_searches == 1
    assert len(set(map(id, loaded))) == 1


# Fetching it


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@needs_vocabulary
def test_the_fetched_file_is_found_afterwards(tmp_path: Path, file_server: str, empty_machine: Path):
    assert VOCABULARY is not None
    (tmp_path / "cl100k_base.tiktoken").write_bytes(VOCABULARY.read_bytes())
    destination = fetch_cl100k(url=f"{file_server}/cl100k_base.tiktoken")
    assert destination == empty_machine / "cache/laneway/cl100k_base.tiktoken"
    assert hashlib.sha256(destination.read_bytes()).hexdigest() == CL100K_SHA256
    assert load_cl100k(candidate_paths(None)).decode([15339]) == "hello"
    assert [path.name for path in destination.parent.iterdir()] == ["cl100k_base.tiktoken"]


def test_another_file_than_expected_is_not_kept(tmp_path: Path, file_server: str):
    (tmp_path / "file").write_bytes(b"not it")
    destination = tmp_path / "kept" / "file"
    with pytest.raises(
        VocabularyError, match=r"sent another file: its sha256 is [0-9a-f]{64}, and must be 2239"
    ):
        fetch_cl100k(destination, url=f"{file_server}/file")
    assert not destination.exists()


def test_an_address_that_cannot_be_reached_comes_with_the_way_out(tmp_path: Path, file_server: str):
    with pytest.raises(VocabularyError) as caught:
        fetch_cl100k(tmp_path / "x", url=f"{file_server}/absent")
    assert str(caught.value) == (
        f"{file_server}/absent cannot be reached (HTTP Error 404: File not found). "
        f"Copy the file to {tmp_path / 'x'}, or name it with cl100k_path."
    )

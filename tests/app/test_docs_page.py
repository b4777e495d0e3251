"""The documentation page: complete, and on its own."""

import re
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from litestar import Litestar, get, post
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import FromPath, JSONBody

from app.pages import DOCS
from tests.app.running import Running, running

STATIC = Path(__file__).parents[2] / "app" / "static"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Part(msgspec.Struct, tag_field="type", tag="text"):
    """A part of an item."""

    text: str


class Wanted(msgspec.Struct):
    """What to embed."""

    input: str | list[str | Part]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    hostile: str = "<img src=x onerror=document.title='owned'>"


@post("/v1/embeddings", tags=["OpenAI"], status_code=200, sync_to_thread=False)
def create_embedding(data: JSONBody[Wanted]) -> dict[str, int]:
    """Embed text for the `reader`."""
    return {"inputs": 1}


@get("/v1/models/{model:str}", tags=["OpenAI"], sync_to_thread=False)
def retrieve_model(model: FromPath[str]) -> dict[str, str]:
    """Describe one model."""
    return {"id": model}


@pytest.fixture(scope="module")
def server() -> Generator[Running]:
    app = Litestar(
        [create_embedding, retrieve_model, *DOCS.handlers()],
        openapi_config=OpenAPIConfig(
            title="Sample", version="9.9.9", use_handler_docstrings=True, render_plugins=[JsonRenderPlugin()]
        ),
        logging_config=None,
    )
    with running(app) as it:
        yield it


def fetch(server: Running, path: str):
    return server.ask(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())


@pytest.mark.parametrize("file", sorted(STATIC.iterdir()), ids=lambda file: file.name)
def test_the_files_name_no_other_address(file: Path):
    """A gateway may stand in a network without a way out, and readers must not be told on."""
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\w+://|[\"'(]//", text), file
    assert "@import" not in text


def test_what_the_page_refers_to_exists(server: Running):
    html = (STATIC / "docs.html").read_text(encoding="utf-8")
    own = set(re.findall(r'(?:src|href)="(/docs/[^"]+)"', html))
    assert own == {f"/docs/{name}" for name in DOCS.media_types}
    # The rest is the live page's.
    assert {file.name for file in STATIC.glob("[!u]*")} == {"docs.html", *DOCS.media_types}
    assert fetch(server, "/schema/openapi.json").status == 200


def test_the_page_can_be_used_without_a_mouse_and_read_aloud():
    html = (STATIC / "docs.html").read_text(encoding="utf-8")
    assert '<html lang="en">' in html
    assert 'class="skip" href="#endpoints"' in html
    assert 'id="endpoints" tabindex="-1"' in html
    assert re.search(r"<label>API key\s+<input", html)
    css = (STATIC / "docs.css").read_text(encoding="utf-8")
    assert ":focus-visible" in css
    assert "prefers-color-scheme: dark" in css


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to draw the page")
def test_a_browser_draws_every_endpoint_and_schema(server: Running, tmp_path: Path):
    """The drawing is done by our script alone, so only a browser can tell that it works."""
    assert CHROMIUM is not None
    host, port = server.address
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path}", "--dump-dom", f"http://{host}:{port}/docs",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    page = done.stdout
    assert "<title>Sample API</title>" in page
    assert '<small id="version">9.9.9</small>' in page
    assert 'id="post-v1-embeddings" open=""' in page
    assert 'id="get-v1-models-model"' in page
    for name in ("Wanted", "Part"):
        assert re.search(rf'<details class="item" id="schema-[\w.]*{name}"', page), name
    # What the document says is text, whatever it looks like.
    assert "&lt;img src=x onerror" in page
    assert '<img src="x"' not in page
    # Backticks mark code.
    assert "<code>reader</code>" in page
    assert "`" not in page.split("<main>")[1]


def test_rows_become_blocks_on_a_phone():
    """Three columns of field, type and meaning would make the whole page scroll sideways.

    Chromium 400 px wide, with everything unfolded, measured nothing beyond the window.
    """
    css = (STATIC / "docs.css").read_text(encoding="utf-8")
    base, _, phone = css.partition("@media (max-width: 40rem)")
    # It comes last: of rules of one weight the later one wins.
    assert "td:first-child" in base
    assert "td { display: block;" in phone
    assert "td:first-child { white-space: normal; }" in phone
    assert not re.search(r"[^-]min-width: (?:[2-9]\d|\d{3,})rem", css)

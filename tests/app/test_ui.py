"""The live page as files, and the way to it; ``tests/browser`` has it drawn."""

import re
from collections.abc import Generator
from pathlib import Path
from typing import cast

import pytest

from app.engine import Engine
from app.main import create_app
from app.pages import UI
from app.settings import Settings
from tests.app.fakes import FakeEngine, Gateway
from tests.app.running import Reply, Running, running

STATIC = Path(__file__).parents[2] / "app" / "static"
FILES = ("ui.html", *(name for name in UI.media_types if name.startswith("ui")))
# What Chromium 156 and Firefox 140 send when an address is typed.
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture(scope="module")
def server() -> Generator[Running]:
    with running(create_app(cast("Engine", FakeEngine()), Settings(), pages=UI.handlers())) as it:
        yield it


def fetch(server: Running, path: str, accept: str | None = None) -> Reply:
    header = "" if accept is None else f"Accept: {accept}\r\n"
    return server.ask(f"GET {path} HTTP/1.1\r\nHost: here\r\n{header}\r\n".encode())


def test_every_file_in_the_folder_is_served_and_every_import_is_a_file():
    """A script that was split and not listed is a page that stays empty."""
    on_disk = {path.name for path in STATIC.glob("ui*")} - {"ui.html"}
    assert on_disk == {name for name in UI.media_types if name.startswith("ui")}
    for name in on_disk:
        for imported in re.findall(r'from "\./([^"]+)"', (STATIC / name).read_text(encoding="utf-8")):
            assert imported in UI.media_types, (name, imported)


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host_and_no_text_becomes_markup(name: str):
    """The policy would stop both, in the reader's browser; here it is stopped before."""
    text = (STATIC / name).read_text(encoding="utf-8")
    assert not re.search(r"\w+://|[\"'(]//", text.replace("http://www.w3.org/2000/svg", ""))
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in text
    if name == "ui.html":
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", text)
        assert set(re.findall(r'(?:src|href)="([^"#]+)"', text)) <= {
            *(f"/ui/{file}" for file in UI.media_types), "/docs", "/metrics", "/v1/models", "/live",
        }  # fmt: skip


@pytest.mark.parametrize("accept", [CHROMIUM, FIREFOX, "text/html"])
def test_a_browser_that_asks_for_the_root_is_sent_to_the_page(server: Running, accept: str):
    reply = fetch(server, "/", accept)
    assert (reply.status, reply.headers["location"]) == (303, "/ui")
    assert reply.headers["vary"] == "accept"
    assert reply.body == b""


@pytest.mark.parametrize(
    "accept",
    [None, "*/*", "", "application/json", "application/json, text/html;q=0.9"],
)
def test_everybody_else_gets_the_status_as_before(server: Running, accept: str | None):
    """Scripts send `*/*` or nothing at all, and the service that came before answered them in JSON."""
    reply = fetch(server, "/", accept)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["vary"] == "accept"
    assert b'"service":"laneway"' in reply.body


async def test_without_a_page_nobody_is_sent_to_it():
    """The application can be built without its pages."""
    assert (await Gateway().get("/", accept=CHROMIUM)).json["service"] == "laneway"

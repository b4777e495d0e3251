"""The pages as files and headers. What is on them: test_docs_page, test_ui, and ``tests/browser``."""

from collections.abc import Generator
from typing import cast

import pytest

from app.engine import Engine
from app.main import create_app
from app.pages import DOCS, PAGES, UI, Page
from app.settings import Settings
from tests.app.fakes import FakeEngine
from tests.app.running import Reply, Running, running


@pytest.fixture(scope="module")
def server() -> Generator[Running]:
    handlers = [handler for page in PAGES for handler in page.handlers()]
    with running(create_app(cast("Engine", FakeEngine()), Settings(), pages=handlers)) as it:
        yield it


def fetch(server: Running, path: str) -> Reply:
    return server.ask(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())


def policy_of(reply: Reply) -> dict[str, str]:
    policy = reply.headers["content-security-policy"]
    assert "unsafe" not in policy
    parts = (part.strip().partition(" ") for part in policy.split(";"))
    return {name: value for name, _, value in parts}


@pytest.mark.parametrize(
    ("page", "path", "media_type"),
    [
        (page, path, media_type)
        for page in PAGES
        for path, media_type in (
            (page.path, "text/html"),
            *((f"{page.path}/{name}", media_type) for name, media_type in page.media_types.items()),
        )
    ],
    ids=str,
)
def test_every_file_of_a_page_is_served_under_its_policy(
    server: Running, page: Page, path: str, media_type: str
):
    reply = fetch(server, path)
    assert reply.status == 200
    charset = "; charset=utf-8" if media_type.startswith("text/") else ""
    assert reply.headers["content-type"] == media_type + charset
    assert reply.headers["content-security-policy"] == page.security_policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-cache"


def test_a_page_that_takes_a_key_runs_nobody_elses_code(server: Running):
    policy = policy_of(fetch(server, DOCS.path))
    assert policy["default-src"] == "'self'"
    assert policy["object-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"


def test_the_live_page_may_load_what_it_is_made_of_and_turn_no_text_into_markup(server: Running):
    """It takes a key, and shows what anybody typed or the server said."""
    policy = policy_of(fetch(server, UI.path))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' blob:"
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")


@pytest.mark.parametrize(
    "path",
    [
        "/ui/settings.py", "/ui/..%2fsettings.py", "/ui/ui.html", "/ui/docs.js",
        "/docs/settings.py", "/docs/..%2fsettings.py", "/docs/docs.html", "/docs/ui.js",
    ],
)  # fmt: skip
def test_no_other_file_is_served(server: Running, path: str):
    assert fetch(server, path).status == 404

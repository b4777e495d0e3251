"""One headless Chromium, one real server, and pages that notice what they should not do."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from app.engine import Engine
from app.live import LiveGpu, LiveView
from app.main import create_app
from app.pages import UI
from app.settings import Settings
from tests.app.fakes import FakeEngine
from tests.app.running import running
from tests.browser.install_chromium import find_chromium
from tests.servers import GOLDEN_CHECKPOINT, RunningServer, start_server


@dataclass
class Watched:
    """What a page asked for and complained of."""

    page: Page
    origin: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def asked(self, path: str) -> list[Request]:
        """Its requests for a path, whatever their query, in order."""
        return [request for request in self.requests if request.url.partition("?")[0] == self.origin + path]


OpenPage = Callable[..., Watched]
"""Opens the page of a server; options are those of a browser context."""
Serve = Callable[..., str]
"""Serves the application around a fake engine, with these GPUs or this view; returns its origin."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    # Not for the whole session: as long as it is open, its event loop runs in this thread, and no other can.
    with sync_playwright() as playwright:
        # Without a sandbox, because the tests may run as root, and nothing but our own page is opened.
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def golden_server() -> Iterator[RunningServer]:
    """The tiny checkpoint, which reads texts and images."""
    running_server = start_server(str(GOLDEN_CHECKPOINT), "--workers", "1", "--no-openai-aliases")
    yield running_server
    running_server.stop()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Applications around fake engines, which answer until the pages are closed."""
    with ExitStack() as at_end:

        def serve_one(engine: FakeEngine, *gpus: LiveGpu, view: LiveView | None = None) -> str:
            view = view or LiveView(version="9.9.9", read_gpus=lambda: gpus)
            app = create_app(cast("Engine", engine), Settings(), view=view, pages=UI.handlers())
            server = at_end.enter_context(running(app))
            return f"http://127.0.0.1:{server.address[1]}"

        yield serve_one


@pytest.fixture
def open_page(chromium: Browser, serve: Serve) -> Iterator[OpenPage]:
    """Pages, closed before their servers; each must have asked nobody but its server, and complained of
    nothing, unless it says what it expects."""
    opened: list[Watched] = []

    def open_one(origin: str, *, expects: tuple[str, ...] = (), path: str = "/ui", **options: Any) -> Watched:
        context = chromium.new_context(**options)
        context.set_default_timeout(60_000)
        watched = Watched(context.new_page(), origin)

        def complain(text: str) -> None:
            if not any(expected in text for expected in expects):
                watched.complaints.append(text)

        def hear(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                complain(message.text)

        # Not the bound method of the list: Playwright keeps notes at what it calls.
        watched.page.on("request", lambda request: watched.requests.append(request))
        watched.page.on("console", hear)
        watched.page.on("pageerror", lambda error: complain(str(error)))
        opened.append(watched)
        watched.page.goto(origin + path)
        return watched

    yield open_one
    for watched in opened:
        foreign = [
            request.url
            for request in watched.requests
            if not request.url.startswith((watched.origin + "/", f"blob:{watched.origin}/"))
        ]
        complaints = watched.complaints
        watched.page.context.close()
        assert foreign == []
        assert complaints == []

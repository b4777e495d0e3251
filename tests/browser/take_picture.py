"""Takes docs/images/ui.png anew: the page of a server that is searched while documents are indexed.

python -m tests.browser.take_picture [FILE]; it takes two and a half minutes, and is best left alone meanwhile.
"""

import json
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.install_chromium import find_chromium
from tests.servers import RunningServer, start_server

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "ui.png"
WIDTH, HEIGHT = 1280, 1290
WATCHED_S = 122
"""A little longer than what charts show."""

Work = Callable[[random.Random, float], tuple[dict[str, object], float] | None]
"""A body to send and the seconds to wait after it, from the time since the start; ``None``: nothing now."""


def queries(rng: random.Random, _: float) -> tuple[dict[str, object], float]:
    return {"input": "where is the river " * rng.randint(1, 4)}, rng.expovariate(6)


def documents(rng: random.Random, since_s: float) -> tuple[dict[str, object], float] | None:
    if since_s < 25:
        return None
    texts = ["a document of some length " * rng.randint(1, 12) for _ in range(rng.randint(16, 96))]
    return {"input": texts, "priority": "document"}, rng.random() * 0.3


def batches(rng: random.Random, since_s: float) -> tuple[dict[str, object], float] | None:
    if since_s < 75:
        return None
    return {"input": ["nobody waits for this one " * 4] * 16, "priority": "batch"}, rng.random()


def keep_sending(server: RunningServer, work: Work, rng: random.Random, stop: threading.Event) -> None:
    started_s = time.monotonic()
    while not stop.is_set():
        wanted = work(rng, time.monotonic() - started_s)
        if wanted is not None:
            body, pause_s = wanted
            request = urllib.request.Request(
                f"{server.base_url}/embeddings",
                data=json.dumps({"model": "minilm", **body}).encode(),
                headers={"content-type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=60).close()
        stop.wait(0.3 if wanted is None else pause_s)


def senders(server: RunningServer, stop: threading.Event) -> Iterator[threading.Thread]:
    for number, work in enumerate([queries, queries, documents, documents, batches]):
        yield threading.Thread(target=keep_sending, args=(server, work, random.Random(number), stop))


def main(picture: Path) -> None:
    server = start_server()
    stop = threading.Event()
    threads = list(senders(server, stop))
    for thread in threads:
        thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
            page.goto(f"{server.root}/ui")
            page.wait_for_timeout(WATCHED_S * 1000)
            page.click("#embed")
            page.wait_for_selector(".matrix")
            page.screenshot(
                path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT}
            )
            browser.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)

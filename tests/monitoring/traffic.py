"""A little of everything that clients do, well and badly, until it is told to stop."""

import base64
import http.client
import itertools
import json
import os
import signal
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.servers import RunningServer, is_answered, wait_until

IMAGE = Path(__file__).parents[1] / "data" / "gme_reference" / "image2.png"
BATCH_QUEUE = 8
"""For --max-batch-queue: two requests that fill it, and the second is turned away."""
PAUSE_S = 0.02
"""After every request, so that refusals, which come at once, leave the cores to those who compute."""

EMBEDDINGS = "/v1/embeddings"
DOCUMENTS = {"input": [f"document {number} " + "word " * number for number in range(24)]}
PICTURE = {"image": "data:image/png;base64," + base64.b64encode(IMAGE.read_bytes()).decode()}

KINDS: tuple[tuple[str, dict[str, Any], dict[str, str]], ...] = (
    (EMBEDDINGS, {"input": "a query"}, {}),
    (EMBEDDINGS, {"input": "a query that was sent before"}, {"x-stainless-retry-count": "1"}),
    (EMBEDDINGS, {"input": [[1, 2, 3]], "token_encoding": "model", "unheard_of": True}, {}),
    (EMBEDDINGS, {"input": "word " * 3_000}, {}),
    (EMBEDDINGS, {"input": [PICTURE], "priority": "document"}, {}),
    (EMBEDDINGS, {"input": [PICTURE], "priority": "query"}, {}),
    (EMBEDDINGS, {"input": [{"image": "data:image/png;base64,AAAA"}]}, {}),
    (EMBEDDINGS, {"input": [{"image": "http://127.0.0.1:9/secret.png"}]}, {}),
    (EMBEDDINGS, {"input": 12}, {}),
    (EMBEDDINGS, {"input": "too late", "timeout_ms": 0.01}, {}),
    ("/nowhere", {}, {}),
)


def post(server: RunningServer, path: str, body: object, headers: dict[str, str] | None = None) -> int:
    """Send one request; returns its status."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        content = json.dumps(body).encode()
        connection.request("POST", path, content, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@contextmanager
def traffic(server: RunningServer, *, model: str) -> Generator[None]:
    """Send it all, again and again, until the block ends."""
    is_over = threading.Event()

    def repeat(*kinds: tuple[str, dict[str, Any], dict[str, str]]) -> None:
        for path, body, headers in itertools.cycle(kinds):
            if is_over.wait(PAUSE_S):
                return
            post(server, path, {"model": model, **body}, headers)

    batch = (EMBEDDINGS, {"input": ["batch"] * BATCH_QUEUE, "priority": "batch"}, {})
    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(repeat, *KINDS), pool.submit(repeat, (EMBEDDINGS, DOCUMENTS, {}))]
        threads += [pool.submit(repeat, batch) for _ in range(2)]
        try:
            yield
        finally:
            is_over.set()
        for thread in threads:
            thread.result()


def ask_too_early(server: RunningServer, *, model: str) -> None:
    """Ask as soon as the port is open: the model is not loaded by then, and the answer is 503."""
    wait_until(lambda: is_answered(f"{server.root}/health/live"), "the port is open")
    assert post(server, EMBEDDINGS, {"model": model, "input": "too early"}) == 503


def kill_children(server: RunningServer) -> int:
    """Kill the worker and the decode processes; returns how many."""
    children = psutil.Process(server.pid).children()
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    return len(children)

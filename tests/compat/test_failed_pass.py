"""From the line of a request that failed to the line that says why, in the log of the program itself."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.compat.failing_server import CAUSE, KILLS, RAISES
from tests.servers import RunningServer, free_port, wait_until, wait_until_ready

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class LoggingServer:
    server: RunningServer
    log: Path

    def embed(self, texts: list[str], *, request_id: str) -> httpx2.Response:
        return httpx2.post(
            f"{self.server.base_url}/embeddings",
            json={"model": "all-MiniLM-L6-v2", "input": texts},
            headers={"x-request-id": request_id},
            timeout=60,
        )

    def lines(self, start: str, **keys: object) -> list[dict[str, Any]]:
        """The lines whose message starts so, and that have these keys."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["message"].startswith(start) and keys.items() <= line.items()]


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoggingServer]:
    log, port = tmp_path_factory.mktemp("log") / "stderr", free_port()
    arguments = ["serve", "--workers", "1", "--log-format", "json", "--port", str(port)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.compat.failing_server", *arguments], cwd=ROOT, stderr=stderr
        )
    server = RunningServer(process, port)
    wait_until_ready(server)
    yield LoggingServer(server, log)
    server.stop()


def test_a_request_leads_to_the_line_of_its_worker(failing: LoggingServer) -> None:
    """Of all the passes that failed, it is the one that held the failing input alone."""
    answer = failing.embed(["one", "two", RAISES, "four"], request_id="raises")
    assert answer.status_code == 500
    (request,) = failing.lines("POST /v1/embeddings failed", request_id="raises")
    assert request["message"] == (
        f"POST /v1/embeddings failed: worker[{request['worker_pid']}] pass {request['pass']}"
    )
    (worker,) = failing.lines("", pid=request["worker_pid"], **{"pass": request["pass"]})
    assert worker["message"] == f"pass {request['pass']} failed (1 inputs)"
    assert CAUSE in worker["exception"]
    assert len(failing.lines("pass ")) > 1
    assert str(request["worker_pid"]) not in answer.text
    assert CAUSE not in answer.text


def test_a_request_leads_to_the_end_of_its_worker(failing: LoggingServer) -> None:
    """A pass that ends its process can write no line; the gateway does."""
    assert failing.embed([KILLS], request_id="kills").status_code == 500
    (request,) = failing.lines("POST /v1/embeddings failed", request_id="kills")
    numbers = {"worker_pid": request["worker_pid"], "pass": request["pass"]}
    # Its caller is told first.
    (end,) = wait_until(lambda: failing.lines("the worker process", **numbers), "the end is logged")
    assert end["message"].startswith(
        f"the worker process (pid {request['worker_pid']}) was killed by SIGKILL "
        f"(the kernel does that when memory runs out) during pass {request['pass']} (1 inputs, 4 tokens); "
        "starting another"
    )
    assert len(failing.lines("the worker process", level="error")) == 2

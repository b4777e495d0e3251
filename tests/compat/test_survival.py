"""A worker dies under load; nobody who asks notices more than a delay."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psutil
from openai import OpenAI
from sentence_transformers import SentenceTransformer

from tests.compat.conftest import assert_same_vectors
from tests.servers import RunningServer, start_server, wait_until_ready

MODEL = "all-MiniLM-L6-v2"


def worker_pids(server: RunningServer) -> list[int]:
    return [child.pid for child in psutil.Process(server.pid).children(recursive=True)]


def test_requests_are_answered_while_workers_are_killed(reference: SentenceTransformer) -> None:
    server = start_server()
    try:
        texts = [f"document {number} " + "word " * (number % 60) for number in range(192)]
        client = OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=120)
        with ThreadPoolExecutor() as pool:
            answers = [
                pool.submit(client.embeddings.create, model=MODEL, input=texts[start : start + 64])
                for start in range(0, 192, 64)
            ]
            for pid in worker_pids(server):
                os.kill(pid, signal.SIGKILL)
            rows = [one.embedding for answer in answers for one in answer.result().data]
        assert_same_vectors(rows, reference.encode(texts))
        wait_until_ready(server)
        stats = httpx2.get(f"{server.root}/stats").json()
        assert all(worker["num_restarts"] >= 1 for worker in stats["workers"])
    finally:
        last_workers = worker_pids(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert not [pid for pid in last_workers if psutil.pid_exists(pid)]


def test_health_tells_the_truth_while_no_worker_lives() -> None:
    """A load balancer must not send requests to a gateway that can only make them wait."""
    server = start_server("--workers", "1")
    try:
        os.kill(worker_pids(server)[0], signal.SIGKILL)
        seen = httpx2.get(f"{server.root}/health/ready")
        while seen.status_code == 200:  # until the gateway has noticed; a restart takes seconds
            seen = httpx2.get(f"{server.root}/health/ready")
        assert seen.status_code == 503
        assert seen.json()["stage"] == "restarting"
        assert httpx2.get(f"{server.root}/health/live").status_code == 200
        wait_until_ready(server)
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0

"""What counting costs a request, and how long a scrape takes.

    python -m bench.metrics [--rounds 7] [--texts 150]

In this process, on the event loop's thread as in the gateway:
  a query       everything that is counted for one request of one text: the request, its stages, its pass, and the
                last seconds that the live page shows
  documents     the same for a request of 16 texts
Against a server with the embedded model, which has answered requests of every lane on many routes, with many
statuses:
  scrape        GET /metrics over a connection of its own, until the last byte
``--texts`` is how many scrapes a round has; between two of them the server answers a query.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from app.engine import Embeddings
from app.live import LiveView
from app.metrics import Metrics
from batching import Lane, PassReport
from bench.client import Connection, Server, request_body
from bench.report import arguments, spread

REPEATS = 5_000
LIMIT_US = 50
LIMIT_MS = 20
"""What they may cost."""
ROUTES = (
    "/v1/embeddings", "/embeddings", "/v2/embed", "/v1/multimodalembeddings", "/embeddings/text", "/embeddings/image",
    "/similarity", "/v1/models", "/v1/models/x", "/models", "/stats", "/", "/health", "/health/live", "/docs", "/nowhere",
)  # fmt: skip
METHODS = ("GET", "POST", "DELETE", "OPTIONS")


def embeddings_of(num_texts: int) -> Embeddings:
    return Embeddings(
        rows=np.zeros((num_texts, 384), dtype=np.float32),
        num_tokens=(12,) * num_texts,
        num_image_tokens=(0,) * num_texts,
        num_images=0,
        modalities=("text",) * num_texts,
        num_dropped_tokens=(0,) * num_texts,
        queue_s=0.0004,
        compute_s=0.008,
        prepare_s=0.0003,
    )


def report_of(lane: Lane, num_texts: int) -> PassReport:
    return PassReport(
        slot=0,
        num_entries={lane: num_texts},
        num_tokens={lane: 12 * num_texts},
        run_s=0.009,
        device_s=0.008,
        predicted_s=0.0078,
        oldest_wait_s=0.0004,
        is_urgent=False,
        breaks_in=False,
    )


def counting(metrics: Metrics, lane: Lane, num_texts: int) -> Callable[[], None]:
    """All that the gateway counts for one request, which was alone in its pass."""
    embeddings, report = embeddings_of(num_texts), report_of(lane, num_texts)

    def count() -> None:
        with metrics.requests_in_flight.track_inprogress():
            pass
        metrics.observe_embeddings(embeddings, lane=lane)
        metrics.observe_http("/v1/embeddings", "POST", 200, 0.0123, failure=None, lane=lane)
        metrics.observe_stage("encode", 0.0002, lane=lane)
        metrics.ignored_params.inc(0)
        metrics.observe_pass(report)

    return count


def microseconds_of(call: Callable[[], None]) -> float:
    call()
    started = time.perf_counter()
    for _ in range(REPEATS):
        call()
    return (time.perf_counter() - started) / REPEATS * 1e6


async def get(port: int, method: str, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    writer.write(f"{method} {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n\r\n")[2]


async def time_scrapes(port: int, rounds: int, scrapes: int) -> tuple[list[float], bytes]:
    """Milliseconds of each scrape, and the last one."""
    for method in METHODS:
        for path in ROUTES:
            await get(port, method, path)
    connection = await Connection.open(port)
    for input_type in ("query", "document"):
        for num_texts in (1, 16, 100):
            await connection.post(request_body(["some words"] * num_texts, input_type))
    times_ms: list[float] = []
    text = b""
    for _ in range(rounds * scrapes):
        await connection.post(request_body(["a query"], "query"))
        started = time.perf_counter()
        text = await get(port, "GET", "/metrics")
        times_ms.append((time.perf_counter() - started) * 1e3)
    connection.close()
    return times_ms, text


async def main() -> None:
    options = arguments(__doc__, rounds=7, texts=150).parse_args()
    metrics = Metrics(LiveView())
    for name, lane, num_texts in (("a query", Lane.QUERY, 1), ("documents", Lane.DOCUMENT, 16)):
        gc.collect()
        costs_us = [microseconds_of(counting(metrics, lane, num_texts)) for _ in range(options.rounds)]
        print(
            f"  {name:<12} median {median(costs_us):.1f} us a request, the slowest of {options.rounds} rounds "
            f"{max(costs_us):.1f} us (limit {LIMIT_US})"
        )
    server = Server()
    try:
        await server.seconds_until("/health")
        times_ms, text = await time_scrapes(server.port, options.rounds, options.texts)
    finally:
        server.stop()
    num_series = sum(not line.startswith(b"#") for line in text.splitlines())
    print(f"  scrape       {spread(times_ms)} (limit {LIMIT_MS}); {num_series:,} series, {len(text):,} bytes")


if __name__ == "__main__":
    asyncio.run(main())

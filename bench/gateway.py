"""What the gateway costs: document throughput over HTTP against the bare workers, and the path of one query.

    python -m bench.gateway [--rounds 7] [--texts 256]

A real server and a second, bare set of workers stand side by side; only one of them works at a time.
Arms, in turn within each round:
  raw          passes cut beforehand, handed straight to worker processes
  raw again    the control
  http         the same texts as document requests of 64 texts, four at a time, base64 answers
  queries      one text at a time; the latency without the time in the queue and on the device
  floor        the same requests to a server that only waits (bench/floor.py): what the client, loopback and the
               kernel cost by themselves, and no gateway can save; the gateway is what lies above it
"""

import argparse
import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from app.devices import place_workers
from app.engine import CPU_PASS_TOKENS
from bench.packing import token_passes
from bench.report import card, is_quiet, lognormal_texts, paired_ratio, save, verdict
from model import EmbeddingInput, Features, Preparer, find_checkpoint
from model.worker import LoadOptions, ProcessWorker

REQUEST_TEXTS = 64
CONCURRENT_REQUESTS = 4
NUM_QUERIES = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, parsed after the clock was stopped."""

    elapsed_s: float
    headers: dict[str, str]
    body: bytes


class Connection:
    """Keep-alive HTTP/1.1 in as little client time as Python allows: the cores are shared with the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**26))

    async def post(self, body: bytes) -> Answer:
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n\r\n"
        started = time.perf_counter()
        self._writer.write(head.encode() + body)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await self._reader.readexactly(int(headers["content-length"]))
        elapsed_s = time.perf_counter() - started
        if " 200 " not in status:
            raise SystemExit(f"{status}: {content.decode()}")
        return Answer(elapsed_s, headers, content)

    def close(self) -> None:
        self._writer.close()


class Server:
    """`laneway serve` as a user starts it, on a free port."""

    def __init__(self, *arguments: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self.started_at = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LANEWAY_")}
        self.port = free_port()
        self._process = subprocess.Popen(
            [Path(sys.executable).parent / "laneway", "serve", "--port", str(self.port), *arguments],
            stdout=self._log,
            stderr=self._log,
            env=environment,
        )

    async def seconds_until(self, path: str, status: bytes) -> float:
        """Wait for the path to answer with the status; returns the time since the start."""
        async with asyncio.timeout(120):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.write(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
                    line = await reader.readline()
                    writer.close()
                    if status in line:
                        return time.perf_counter() - self.started_at
                except ConnectionError:
                    pass
                if self._process.poll() is not None:
                    self._log.seek(0)
                    raise SystemExit(f"the server ended: {self._log.read().decode()}")
                await asyncio.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def raw_seconds(workers: Sequence[ProcessWorker], passes: Sequence[list[Features]]) -> float:
    """Every pass once, each worker taking the next as soon as it is free."""
    waiting = iter(passes)

    async def work(worker: ProcessWorker) -> None:
        for one in waiting:
            await worker.run(one)

    started = time.perf_counter()
    await asyncio.gather(*(work(worker) for worker in workers))
    return time.perf_counter() - started


async def http_seconds(port: int, bodies: Sequence[bytes]) -> tuple[float, list[Answer]]:
    """Every body once, four requests at a time."""
    connections = [await Connection.open(port) for _ in range(CONCURRENT_REQUESTS)]
    waiting = iter(enumerate(bodies))
    answers: dict[int, Answer] = {}

    async def work(connection: Connection) -> None:
        for index, body in waiting:
            answers[index] = await connection.post(body)

    started = time.perf_counter()
    await asyncio.gather(*(work(connection) for connection in connections))
    elapsed_s = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return elapsed_s, [answers[index] for index in range(len(bodies))]


def rows_of(answer: Answer) -> np.ndarray:
    return np.stack(
        [
            np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4")
            for one in json.loads(answer.body)["data"]
        ]
    )


def request_body(texts: Sequence[str], input_type: str) -> bytes:
    return json.dumps(
        {
            "model": "all-MiniLM-L6-v2",
            "input": list(texts),
            "encoding_format": "base64",
            "input_type": input_type,
        }
    ).encode()


@dataclass(slots=True)
class Rounds:
    """What each round gave, in seconds for a whole arm, or milliseconds for each query."""

    raw_s: list[float]
    raw_again_s: list[float]
    http_s: list[float]
    share_ms: list[float]
    floor_ms: list[float]
    latency_ms: list[float]


async def query_shares_ms(port: int, queries: Sequence[bytes]) -> tuple[list[float], list[float]]:
    """One query after the other: latencies, and what of each was neither queue nor device."""
    connection = await Connection.open(port)
    answers = [await connection.post(query) for query in queries]
    connection.close()
    return [one.elapsed_s * 1e3 for one in answers], [share_ms(one) for one in answers]


async def run_rounds(
    num_rounds: int, texts: Sequence[str], server: Server, floor_port: int
) -> tuple[Rounds, int]:
    """All arms, in turn within each round; the first round warms up."""
    checkpoint = find_checkpoint("minilm")
    load = LoadOptions(folder=str(checkpoint.folder), source=checkpoint.name)
    workers = [ProcessWorker(load) for _ in place_workers(device="cpu", dtype="auto", num_workers=0).devices]
    info, *_ = [await worker.start(lambda _stage: None) for worker in workers]
    prepared = Preparer(info).prepare([EmbeddingInput(text=text) for text in texts])
    features = [one for one in prepared if isinstance(one, Features)]
    passes = token_passes(features, CPU_PASS_TOKENS)
    bodies = [
        request_body(texts[start : start + REQUEST_TEXTS], "document")
        for start in range(0, len(texts), REQUEST_TEXTS)
    ]
    queries = [
        request_body([text], "query") for text in lognormal_texts(NUM_QUERIES, median_words=8, sigma=0.5)
    ]
    expected = np.concatenate([(await workers[0].run(one)).rows for one in passes])
    rounds = Rounds([], [], [], [], [], [])
    for number in range(num_rounds + 1):
        raw_s = await raw_seconds(workers, passes)
        http_s, answers = await http_seconds(server.port, bodies)
        raw_again_s = await raw_seconds(workers, passes)
        difference = float(np.abs(np.concatenate([rows_of(answer) for answer in answers]) - expected).max())
        if difference > 1e-5:
            raise SystemExit(f"vectors over HTTP are off by {difference:.1e}")
        latencies, shares = await query_shares_ms(server.port, queries)
        _, floors = await query_shares_ms(floor_port, queries)
        if number:
            rounds.raw_s.append(raw_s)
            rounds.raw_again_s.append(raw_again_s)
            rounds.http_s.append(http_s)
            rounds.latency_ms += latencies
            rounds.share_ms += shares
            rounds.floor_ms.append(median(floors))
    for worker in workers:
        await worker.stop()
    return rounds, sum(one.num_tokens for one in features)


async def measure(num_rounds: int, num_texts: int, floor_port: int) -> None:
    server = Server()
    try:
        port_open_s = await server.seconds_until("/health/live", b" 200 ")
        ready_s = await server.seconds_until("/health/ready", b" 200 ")
        rounds, num_tokens = await run_rounds(num_rounds, lognormal_texts(num_texts), server, floor_port)
    finally:
        server.stop()

    control = paired_ratio(rounds.raw_again_s, rounds.raw_s)
    raw_s = [(first + again) / 2 for first, again in zip(rounds.raw_s, rounds.raw_again_s, strict=True)]
    # Time of raw over time of HTTP is throughput of HTTP over throughput of raw.
    http_over_raw = paired_ratio(raw_s, rounds.http_s)
    floor_ms = median(rounds.floor_ms)
    gateway_ms = median(rounds.share_ms) - floor_ms
    p99_ms = quantiles(rounds.share_ms, n=100)[98] - floor_ms
    print(f"{num_texts} texts, {num_tokens} tokens")
    print(f"  port open after {port_open_s:.2f} s, ready after {ready_s:.1f} s")
    print(f"  control (raw over itself)      {control}: {verdict(control)}")
    print(f"  documents over HTTP over raw   {http_over_raw}   (target >= 0.90)")
    print(f"  a query alone                  median {median(rounds.latency_ms):.1f} ms")
    print(
        f"  besides queue and model        median {median(rounds.share_ms):.2f} ms, of which floor {floor_ms:.2f} ms"
    )
    print(f"  the gateway                    median {gateway_ms:.2f} ms, p99 {p99_ms:.2f} ms   (target < 2)")
    path = save(
        "gateway-cpu",
        {
            "card": card(),
            "load": {"texts": num_texts, "tokens": num_tokens, "queries": len(rounds.share_ms)},
            "is_quiet": is_quiet(control),
            "control": control,
            "http_over_raw_throughput": http_over_raw,
            "query_alone_ms_median": round(median(rounds.latency_ms), 2),
            "besides_queue_and_model_ms_median": round(median(rounds.share_ms), 3),
            "floor_ms_median": round(floor_ms, 3),
            "gateway_ms_median": round(gateway_ms, 3),
            "gateway_ms_p99": round(p99_ms, 3),
            "port_open_s": round(port_open_s, 2),
            "ready_s": round(ready_s, 1),
        },
    )
    print(f"written to {path}")


def share_ms(answer: Answer) -> float:
    """Latency without the time in the queue and on the device, as the server's own headers tell them."""
    return (
        answer.elapsed_s * 1e3
        - float(answer.headers["x-queue-time-ms"])
        - float(answer.headers["x-compute-time-ms"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=256)
    options = parser.parse_args()
    floor_port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "bench.floor", str(floor_port)], stdout=subprocess.PIPE
    ) as floor:
        assert floor.stdout is not None
        floor.stdout.readline()
        try:
            asyncio.run(measure(options.rounds, options.texts, floor_port))
        finally:
            floor.terminate()


if __name__ == "__main__":
    main()

"""What the gateway costs: document throughput over HTTP against the bare workers, and the path of one query.

    python -m bench.gateway [--rounds 7] [--texts 256]

A real server and a second, bare set of workers stand side by side; only one of them works at a time.
Arms, in turn within each round:
  raw          passes cut beforehand, handed straight to worker processes
  raw again    the control
  http         the same texts as document requests of 64 texts, four at a time, base64 answers
  queries      one text at a time; what remains of the latency without queue and device is the gateway
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


async def measure(num_rounds: int, num_texts: int) -> None:
    texts = lognormal_texts(num_texts)
    server = Server()
    try:
        port_open_s = await server.seconds_until("/health/live", b" 200 ")
        ready_s = await server.seconds_until("/health/ready", b" 200 ")
        checkpoint = find_checkpoint("minilm")
        placement = place_workers(device="cpu", dtype="auto", num_workers=0)
        load = LoadOptions(folder=str(checkpoint.folder), source=checkpoint.name)
        workers = [ProcessWorker(load) for _ in placement.devices]
        infos = [await worker.start(lambda _stage: None) for worker in workers]
        prepared = Preparer(infos[0]).prepare([EmbeddingInput(text=text) for text in texts])
        features = [one for one in prepared if isinstance(one, Features)]
        passes = token_passes(features, CPU_PASS_TOKENS)
        bodies = [
            request_body(texts[start : start + REQUEST_TEXTS], "document")
            for start in range(0, len(texts), REQUEST_TEXTS)
        ]
        queries = [
            request_body([text], "query") for text in lognormal_texts(NUM_QUERIES, median_words=8, sigma=0.5)
        ]

        raw_s: list[float] = []
        raw_again_s: list[float] = []
        http_s: list[float] = []
        gateway_ms: list[float] = []
        latency_ms: list[float] = []
        expected = np.concatenate([(await workers[0].run(one)).rows for one in passes])
        for round_number in range(num_rounds + 1):
            raw = await raw_seconds(workers, passes)
            http, answers = await http_seconds(server.port, bodies)
            raw_again = await raw_seconds(workers, passes)
            difference = float(np.abs(np.concatenate([rows_of(a) for a in answers]) - expected).max())
            if difference > 1e-5:
                raise SystemExit(f"vectors over HTTP are off by {difference:.1e}")
            connection = await Connection.open(server.port)
            singles = [await connection.post(query) for query in queries]
            connection.close()
            if round_number:  # the first round warms up
                raw_s.append(raw)
                raw_again_s.append(raw_again)
                http_s.append(http)
                latency_ms += [one.elapsed_s * 1e3 for one in singles]
                gateway_ms += [gateway_share_ms(one) for one in singles]
        for worker in workers:
            await worker.stop()
    finally:
        server.stop()

    num_tokens = sum(one.num_tokens for one in features)
    control = paired_ratio(raw_again_s, raw_s)
    # Time of raw over time of HTTP is throughput of HTTP over throughput of raw.
    http_over_raw = paired_ratio([(a + b) / 2 for a, b in zip(raw_s, raw_again_s, strict=True)], http_s)
    print(f"{len(texts)} texts, {num_tokens} tokens, {len(workers)} workers")
    print(f"  port open after {port_open_s:.2f} s, ready after {ready_s:.1f} s")
    print(f"  control (raw over itself)      {control}: {verdict(control)}")
    print(f"  documents over HTTP over raw   {http_over_raw}   (target >= 0.90)")
    p99 = quantiles(gateway_ms, n=100)[98]
    print(
        f"  query besides queue and model: median {median(gateway_ms):.2f} ms, p99 {p99:.2f} ms (target < 2)"
    )
    print(f"  a query alone: median {median(latency_ms):.1f} ms")
    path = save(
        "gateway-cpu",
        {
            "card": card(),
            "load": {"texts": len(texts), "tokens": num_tokens, "workers": len(workers)},
            "is_quiet": is_quiet(control),
            "control": control,
            "http_over_raw_throughput": http_over_raw,
            "gateway_ms_median": round(median(gateway_ms), 3),
            "gateway_ms_p99": round(p99, 3),
            "query_alone_ms_median": round(median(latency_ms), 2),
            "port_open_s": round(port_open_s, 2),
            "ready_s": round(ready_s, 1),
        },
    )
    print(f"written to {path}")


def gateway_share_ms(answer: Answer) -> float:
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
    asyncio.run(measure(options.rounds, options.texts))


if __name__ == "__main__":
    main()

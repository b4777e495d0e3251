"""What the gateway costs: document throughput over HTTP against the bare workers, and the path of one query.

    python -m bench.gateway [--rounds 7] [--texts 256]

A real server and a second, bare set of workers stand side by side; only one of them works at a time.
Arms, in turn within each round:
  raw          all texts sorted by length, cut into passes beforehand, handed straight to worker processes, two
               passes ahead: the best that these workers can do, while no tokeniser takes a core
  http         the same texts as document requests of 16 texts, four at a time, base64 answers; like raw from
               the first text to the last, the idle end included
  raw again    the control
  queries      one text at a time; the latency without the time in the queue and on the device
  floor        the same requests to a server that only waits (bench/floor.py): what the client, loopback and the
               kernel cost by themselves, and no gateway can save
  hop          the same texts, tokenised beforehand, handed one by one to a bare worker: the call without the
               time on the device is the way to another process and back

The whole path of a query, besides queue and device, is the difference of the medians of queries and floor. What
the gateway itself costs is the path without the hop to the worker, whose other half is the model's process. The
99th percentiles stand side by side and are not subtracted: the slow ones of one are not the slow ones of another.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from app.devices import place_workers
from bench.client import Answer, Connection, Server, document_bodies, free_port, post_all, request_body
from bench.loads import features_of, lognormal_texts, longest_first, pass_tokens_of, token_passes
from bench.raw import raw_seconds
from bench.report import arguments, averaged, card, paired_ratio, save, spread, verdict
from model import Features, Preparer, find_checkpoint
from model.worker import LoadOptions, ProcessWorker

ROUND_QUERIES = 200
"""In each round, so that the fewest rounds that are quoted, five, make a 99th percentile."""


@dataclass(slots=True)
class Rounds:
    """What the rounds gave: seconds of a whole arm in each, milliseconds of each query of all."""

    raw_s: list[float] = field(default_factory=list)
    raw_again_s: list[float] = field(default_factory=list)
    http_s: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    besides_ms: list[float] = field(default_factory=list)
    floor_ms: list[float] = field(default_factory=list)
    hop_ms: list[float] = field(default_factory=list)


async def start_workers() -> tuple[list[ProcessWorker], Preparer]:
    """Workers as the server places them."""
    checkpoint = find_checkpoint("minilm")
    placement = place_workers(device="cpu", dtype="auto", num_workers=0)
    workers = [
        ProcessWorker(
            LoadOptions(
                folder=str(checkpoint.folder),
                source=checkpoint.name,
                device=device,
                dtype=placement.dtype,
                num_threads=placement.threads_per_worker,
            )
        )
        for device in placement.devices
    ]
    infos = [await worker.start(lambda _stage: None) for worker in workers]
    return workers, Preparer(infos[0])


async def rows_in_order(
    worker: ProcessWorker, passes: Sequence[list[Features]], order: Sequence[int]
) -> np.ndarray:
    """Rows of the passes, put back from the order that they were cut in."""
    sorted_rows = np.concatenate([(await worker.run(one)).rows for one in passes])
    rows = np.empty_like(sorted_rows)
    rows[list(order)] = sorted_rows
    return rows


async def one_by_one(port: int, queries: Sequence[bytes]) -> list[Answer]:
    """One query after the other, on one connection."""
    connection = await Connection.open(port)
    answers = [await connection.post(query) for query in queries]
    connection.close()
    return answers


async def hops_ms(worker: ProcessWorker, queries: Sequence[Features]) -> list[float]:
    """One query after the other to the bare worker: what of each call was not the device."""
    hops: list[float] = []
    for query in queries:
        started = time.perf_counter()
        result = await worker.run([query])
        hops.append((time.perf_counter() - started - result.device_s) * 1e3)
    return hops


def besides_queue_and_model_ms(answer: Answer) -> float:
    """Latency without the time in the queue and on the device, as the server's own headers tell them.

    The gateway's headers are rounded to 0.1 ms, up as often as down.
    """
    return (
        answer.elapsed_s * 1e3
        - float(answer.headers["x-queue-time-ms"])
        - float(answer.headers["x-compute-time-ms"])
    )


async def run_rounds(
    num_rounds: int, texts: Sequence[str], *, server_port: int, floor_port: int
) -> tuple[Rounds, int]:
    """All arms, in turn within each round; a round before the first warms up.

    Returns:
        What the rounds gave, and how many tokens the texts have.
    """
    workers, preparer = await start_workers()
    try:
        features = features_of(preparer, texts)
        order = longest_first(features)
        passes = token_passes([features[index] for index in order], pass_tokens_of("cpu"))
        expected = await rows_in_order(workers[0], passes, order)
        bodies = document_bodies(texts)
        query_texts = lognormal_texts(ROUND_QUERIES, median_words=8, sigma=0.5)
        query_features = features_of(preparer, query_texts)
        queries = [request_body([text], "query") for text in query_texts]
        rounds = Rounds()
        for number in range(num_rounds + 1):
            raw_s = await raw_seconds(workers, passes)
            http_s, answers = await post_all(server_port, bodies)
            raw_again_s = await raw_seconds(workers, passes)
            query_answers = await one_by_one(server_port, queries)
            floor_answers = await one_by_one(floor_port, queries)
            hops = await hops_ms(workers[0], query_features)
            difference = float(np.abs(np.concatenate([one.rows() for one in answers]) - expected).max())
            if not difference <= 1e-5:
                raise SystemExit(f"vectors over HTTP are off by {difference:.1e}")
            if number:
                rounds.raw_s.append(raw_s)
                rounds.http_s.append(http_s)
                rounds.raw_again_s.append(raw_again_s)
                rounds.latency_ms += [one.elapsed_s * 1e3 for one in query_answers]
                rounds.besides_ms += map(besides_queue_and_model_ms, query_answers)
                rounds.floor_ms += map(besides_queue_and_model_ms, floor_answers)
                rounds.hop_ms += hops
    finally:
        for worker in workers:
            await worker.stop()
    return rounds, sum(one.num_tokens for one in features)


async def measure(num_rounds: int, num_texts: int, floor_port: int) -> None:
    server = Server()
    try:
        port_open_s = await server.seconds_until("/health/live")
        ready_s = await server.seconds_until("/health/ready")
        rounds, num_tokens = await run_rounds(
            num_rounds, lognormal_texts(num_texts), server_port=server.port, floor_port=floor_port
        )
    finally:
        server.stop()

    control = paired_ratio(rounds.raw_again_s, rounds.raw_s)
    # Time of raw over time of HTTP is throughput of HTTP over throughput of raw.
    http_over_raw = paired_ratio(averaged(rounds.raw_s, rounds.raw_again_s), rounds.http_s)
    alone, besides, floor = spread(rounds.latency_ms), spread(rounds.besides_ms), spread(rounds.floor_ms)
    hop = spread(rounds.hop_ms)
    path_ms = besides.median_ms - floor.median_ms
    gateway_ms = path_ms - hop.median_ms
    print(f"{num_texts} texts, {num_tokens} tokens; {besides.num_samples:,} queries")
    print(f"  port open after {port_open_s:.2f} s, ready after {ready_s:.1f} s")
    print(f"  control (raw over itself)      {control}: {verdict(control)}")
    print(f"  documents over HTTP over raw   {http_over_raw}   (target >= 0.90)")
    print(f"  a query alone                  {alone}")
    print(f"    besides queue and model      {besides}")
    print(f"    the floor under that         {floor}")
    print(f"    the hop to the worker        {hop}")
    print(f"    the whole path               median {path_ms:.2f} ms")
    print(f"    the gateway's part of it     median {gateway_ms:.2f} ms   (target < 2)")
    save(
        "gateway-cpu",
        control,
        {
            "card": card(),
            "load": {"texts": num_texts, "tokens": num_tokens, "queries": besides.num_samples},
            "http_over_raw_throughput": http_over_raw,
            "query_alone_ms": alone,
            "besides_queue_and_model_ms": besides,
            "floor_ms": floor,
            "hop_ms": hop,
            "path_ms_median": round(path_ms, 3),
            "gateway_ms_median": round(gateway_ms, 3),
            "port_open_s": round(port_open_s, 2),
            "ready_s": round(ready_s, 1),
        },
    )


@contextmanager
def floor_server() -> Generator[int]:
    """The server that only waits; gives its port."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "bench.floor", str(port)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield port
        finally:
            process.terminate()


def main() -> None:
    options = arguments(__doc__, rounds=7, texts=256).parse_args()
    with floor_server() as floor_port:
        asyncio.run(measure(options.rounds, options.texts, floor_port))


if __name__ == "__main__":
    main()

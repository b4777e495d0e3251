"""The gateway as its users meet it: a server process of its own, and requests over HTTP.

The client does as little as Python allows while the clock runs, for it shares the cores with the server:
bodies are made beforehand, answers are parsed afterwards.
"""

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REQUEST_TEXTS = 16
"""Texts of one document request."""
CONCURRENT_REQUESTS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, parsed after the clock was stopped."""

    elapsed_s: float
    headers: dict[str, str]
    body: bytes

    def rows(self) -> np.ndarray:
        """The vectors, ``[N, D]``, in the order of the request."""
        vectors = (base64.b64decode(one["embedding"]) for one in json.loads(self.body)["data"])
        return np.stack([np.frombuffer(vector, dtype="<f4") for vector in vectors])


class Connection:
    """Keep-alive HTTP/1.1."""

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


SERVE = (str(Path(sys.executable).parent / "laneway"), "serve", "--device", "cpu")
"""The server as a user starts it."""


class Server:
    """`laneway serve` on CPU, or another program that takes its options, on a free port."""

    def __init__(self, *arguments: str, program: Sequence[str] = SERVE) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self.started_at = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LANEWAY_")}
        self.port = free_port()
        self._process = subprocess.Popen(
            [*program, "--port", str(self.port), *arguments],
            stdout=self._log,
            stderr=self._log,
            env=environment,
        )

    async def seconds_until(self, path: str) -> float:
        """Wait for the path to answer with 200; returns the time since the start."""
        async with asyncio.timeout(120):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.write(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
                    line = await reader.readline()
                    writer.close()
                    if b" 200 " in line:
                        return time.perf_counter() - self.started_at
                except ConnectionError:
                    pass
                if self._process.poll() is not None:
                    self._log.seek(0)
                    raise SystemExit(f"the server ended: {self._log.read().decode()}")
                await asyncio.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def request_body(texts: Sequence[str], input_type: str) -> bytes:
    return json.dumps(
        {
            "model": "all-MiniLM-L6-v2",
            "input": list(texts),
            "encoding_format": "base64",
            "input_type": input_type,
        }
    ).encode()


def document_bodies(texts: Sequence[str]) -> list[bytes]:
    """The texts as document requests, in their order."""
    return [
        request_body(texts[start : start + REQUEST_TEXTS], "document")
        for start in range(0, len(texts), REQUEST_TEXTS)
    ]


async def post_all(port: int, bodies: Sequence[bytes]) -> tuple[float, list[Answer]]:
    """Every body once, four requests at a time: the seconds of all together, and the answers in order."""
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

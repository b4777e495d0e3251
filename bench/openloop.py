"""The load, in a process of its own: queries at moments fixed beforehand, and documents without a pause.

Law 1: a query's latency runs from the moment at which it was meant to be sent to the last byte of its answer.
       What kept it from being sent on time, this process included, is part of it, and is recorded.
Law 2: while the clock runs nothing is serialised and nothing is parsed: bodies come ready made, answers are kept as
       bytes. Only the head of a refusal is read, where what was refused shall come again.
Law 3: every query ends as an answer with its status, or as a miss: timed out, broken off, never sent.
"""

import asyncio
import gc
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import cycle
from multiprocessing import get_context

from bench.arrivals import Arrivals

NO_ANSWER = 0
"""The status of a request that timed out, was broken off, or was never sent."""
MAX_CONNECTIONS = 4_000
"""Queries under way at once; one that finds no connection is never sent."""
_SPARE_CONNECTIONS = 64
"""Open before the clock runs."""
_SPARE_S = 5.0
"""A connection that was never used is not used after so long: servers end one that says nothing, and a query that
is sent in that moment would be lost (the gateway's header_timeout_s is 10)."""
_DOCUMENT_PAUSE_S = 0.1
"""After a document request that failed; a loop without a pause would be another load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go."""

    port: int
    host: str = "127.0.0.1"
    path: str = "/v1/embeddings"

    @property
    def metrics_request(self) -> bytes:
        """Asks for what the server counts."""
        return f"GET /metrics HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n\r\n".encode()

    def request(self, body: bytes) -> bytes:
        """Head and body, as they go out in one write."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One block of load on one server."""

    target: Target
    queries: Sequence[bytes]
    """Bodies of query requests."""
    arrivals: Arrivals
    documents: Sequence[bytes] = ()
    """Bodies of document requests, sent in this order, over and over."""
    num_document_requests: int = 0
    """Document requests that are always under way."""
    window_s: float = 0.0
    """The block goes on for so long after the warm-up, at the least."""
    timeout_s: float = 60.0
    """A query without its answer by then is a miss."""
    reads_metrics: bool = False
    """Ask for the server's counters when the warm-up is over, and when the last query was to be sent."""
    drains_documents: bool = False
    """At the end document requests are not broken off, but no new ones follow."""
    retries_refused: bool = False
    """Queries refused with 429 come again, once, at the moment that they were told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of one request. Times are seconds from the start of the block."""

    body: int
    """Which of the prepared bodies it was."""
    intended_s: float
    sent_s: float
    done_s: float
    status: int
    head: bytes = b""
    content: bytes = b""
    was_sent: bool = True
    """``False``: we had no connection for it, which is no fault of the server's."""

    @property
    def latency_s(self) -> float:
        """From the intended moment to the last byte; endless for whatever is no 200."""
        return self.done_s - self.intended_s if self.status == 200 else float("inf")

    @property
    def lateness_s(self) -> float:
        """How much later than intended it was sent."""
        return self.sent_s - self.intended_s

    def header(self, name: str) -> str | None:
        """A header's value, or ``None``."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """The server's counters at a moment of the block."""

    at_s: float
    content: bytes
    load_cpu_s: float = 0.0
    """Processor time that the load's own process had taken by then."""


@dataclass(slots=True, kw_only=True)
class Log:
    """Everything that was sent in one block."""

    queries: list[Sent] = field(default_factory=list)
    """Those that count, and no warm ones."""
    documents: list[Sent] = field(default_factory=list)
    """Those that were answered; what was still under way at the end was broken off by us, and is not here."""
    retries: list[Sent] = field(default_factory=list)
    """Of ``queries`` that were refused; each was meant to come at the moment that its refusal named."""
    warm_queries: list[Sent] = field(default_factory=list)
    scrapes: list[Scrape] = field(default_factory=list)
    """At the end of the warm-up and at the end of the block; none where none were wanted."""
    warm_s: float = 0.0
    end_s: float = 0.0
    """When the last query was to be sent, and the window was over. Answers came later, too."""


class LoadGenerator:
    """Owns the process. ``run`` gives it one block after the other."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_go_first)

    async def run(self, load: Load) -> Log:
        """Run one block; returns when its queries have ended and its documents are broken off."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, drive, load)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _go_first() -> None:
    """Be scheduled before what is measured, where that is allowed: on two cores it computes on both, and a
    query that goes out late says nothing."""
    with suppress(OSError):
        os.nice(-10)


def drive(load: Load) -> Log:
    """Run one block in this process."""
    # Not uvloop: its timers count whole milliseconds, and what is slow here is bytes, not the loop.
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_Block(load).run())
    finally:
        gc.enable()


class _Connection(asyncio.Protocol):
    """Keep-alive HTTP/1.1, one request at a time; answers need a content-length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._head_bytes = 0
        self._answer_bytes = 0
        self._on_end: Callable[[int, bytes, bytes], None] | None = None
        self.was_used = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, on_end: Callable[[int, bytes, bytes], None]) -> None:
        """Send; the callback gets status, head and content, or ``NO_ANSWER``."""
        assert self._on_end is None, "one request at a time"
        assert self._transport is not None, "connected"
        self._on_end = on_end
        self.was_used = True
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._answer_bytes:
            self._read_head()
        if self._answer_bytes and len(self._received) >= self._answer_bytes:
            self._end_answer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(NO_ANSWER, b"", b"")

    def _read_head(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        self._head_bytes = end + 4
        head = bytes(self._received[:end]).lower()
        _, found, rest = head.partition(b"\r\ncontent-length:")
        if not found:
            self.close()
            return
        self._answer_bytes = self._head_bytes + int(rest.partition(b"\r\n")[0])

    def _end_answer(self) -> None:
        head = bytes(self._received[: self._head_bytes - 4])
        content = bytes(self._received[self._head_bytes : self._answer_bytes])
        self._received.clear()
        self._answer_bytes = 0
        if b"\r\nconnection: close" in head.lower():
            self.close()
        self._end(int(head.split(b" ", 2)[1]), head, content)

    def _end(self, status: int, head: bytes, content: bytes) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(status, head, content)


class _Block:
    """One block under way. Everything happens on the loop; a thread only says when."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._queries = [load.target.request(body) for body in load.queries]
        self._documents = [load.target.request(body) for body in load.documents]
        self._next_document: Iterator[int] = cycle(range(len(self._documents)))
        self._idle: deque[_Connection] = deque()
        self._num_connections = 0
        self._open: set[_Connection] = set()
        warm_s = load.arrivals.warm_s
        self._log = Log(warm_s=warm_s, end_s=max(load.arrivals.end_s, warm_s + load.window_s))
        self._num_ended = 0
        self._num_expected = len(load.arrivals.offsets_s)
        self._all_ended = asyncio.Event()
        self._num_documents_out = 0
        self._drained = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._is_over = False
        self._started_s = 0.0

    async def run(self) -> Log:
        self._loop = asyncio.get_running_loop()
        for _ in range(min(_SPARE_CONNECTIONS, self._num_expected)):
            self._idle.append(await self._connect())
        document_connections = [await self._connect() for _ in range(self._load.num_document_requests)]
        self._started_s = time.perf_counter()
        for connection in document_connections:
            self._send_document(connection)
        pace = threading.Thread(target=self._pace, daemon=True)
        pace.start()
        for moment_s in (self._log.warm_s, self._log.end_s):
            await asyncio.sleep(max(0.0, moment_s - self._now_s()))
            if self._load.reads_metrics:
                await self._read_metrics()
        if self._num_expected:
            await self._all_ended.wait()
        self._is_over = True
        pace.join()
        if self._load.drains_documents and self._num_documents_out:
            await self._drained.wait()
        for task in self._background:
            task.cancel()
        for connection in list(self._open):
            connection.close()
        await asyncio.sleep(0)
        return self._log

    def _now_s(self) -> float:
        return time.perf_counter() - self._started_s

    async def _read_metrics(self) -> None:
        connection = await self._connect()
        answered: asyncio.Future[bytes] = self._loop.create_future()
        connection.send(
            self._load.target.metrics_request, lambda _status, _head, content: answered.set_result(content)
        )
        content = await answered
        self._log.scrapes.append(Scrape(at_s=self._now_s(), content=content, load_cpu_s=time.process_time()))
        self._forget(connection)

    async def _connect(self) -> _Connection:
        self._num_connections += 1
        target = self._load.target
        try:
            _, connection = await self._loop.create_connection(_Connection, target.host, target.port)
        except OSError:
            self._num_connections -= 1
            raise
        self._open.add(connection)
        return connection

    # Queries

    def _pace(self) -> None:
        """Say when each query is due. A thread, because the loop's own timers are a millisecond late."""
        for number, offset_s in enumerate(self._load.arrivals.offsets_s):
            delay_s = offset_s - self._now_s()
            if delay_s > 0:
                time.sleep(delay_s)
            if self._is_over:
                return
            self._loop.call_soon_threadsafe(self._send_scheduled, number)

    def _send_scheduled(self, number: int) -> None:
        arrivals = self._load.arrivals
        log = self._log.warm_queries if number < arrivals.num_warm else self._log.queries

        def end(sent: Sent) -> None:
            log.append(sent)
            if self._load.retries_refused and log is self._log.queries:
                self._retry_refused(sent)
            self._count_end()

        self._send_query(arrivals.bodies[number], arrivals.offsets_s[number], end)

    def _retry_refused(self, refused: Sent) -> None:
        """Have it sent again when it was told to come, which is one more query to wait for."""
        wait_s = retry_after_s(refused) if refused.status == 429 else None
        if wait_s is None:
            return

        def end(sent: Sent) -> None:
            self._log.retries.append(sent)
            self._count_end()

        self._num_expected += 1
        at_s = refused.done_s + wait_s
        self._loop.call_later(max(0.0, at_s - self._now_s()), self._send_query, refused.body, at_s, end)

    def _count_end(self) -> None:
        self._num_ended += 1
        if self._num_ended == self._num_expected:
            self._all_ended.set()

    def _send_query(self, body: int, intended_s: float, on_end: Callable[[Sent], None]) -> None:
        """Send on an idle connection, or on a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and (connection.was_used or self._now_s() <= _SPARE_S):
                self._send_on(connection, body, intended_s, on_end)
                return
            self._forget(connection)
        if self._num_connections >= MAX_CONNECTIONS:
            on_end(self._unanswered(body, intended_s, was_sent=False))
            return
        self._in_background(self._send_on_new(body, intended_s, on_end))

    def _forget(self, connection: _Connection) -> None:
        connection.close()
        self._num_connections -= 1
        self._open.discard(connection)

    async def _send_on_new(self, body: int, intended_s: float, on_end: Callable[[Sent], None]) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            # Refused or reset it was by the server; other errors say that we have no file or no port left.
            on_end(self._unanswered(body, intended_s, was_sent=isinstance(error, ConnectionError)))
            return
        self._send_on(connection, body, intended_s, on_end)

    def _unanswered(self, body: int, intended_s: float, *, was_sent: bool) -> Sent:
        now_s = self._now_s()
        return Sent(
            body=body,
            intended_s=intended_s,
            sent_s=now_s,
            done_s=now_s,
            status=NO_ANSWER,
            was_sent=was_sent,
        )

    def _send_on(
        self, connection: _Connection, body: int, intended_s: float, on_end: Callable[[Sent], None]
    ) -> None:
        sent = Sent(body=body, intended_s=intended_s, sent_s=self._now_s(), done_s=0.0, status=NO_ANSWER)
        timeout_s = max(0.0, intended_s + self._load.timeout_s - sent.sent_s)
        timer = self._loop.call_later(timeout_s, connection.close)

        def end(status: int, head: bytes, content: bytes) -> None:
            done_s = self._now_s()
            timer.cancel()
            if status == NO_ANSWER:
                self._forget(connection)
            else:
                self._idle.append(connection)
            on_end(replace(sent, done_s=done_s, status=status, head=head, content=content))

        connection.send(self._queries[body], end)

    # Documents

    def _send_document(self, connection: _Connection) -> None:
        body = next(self._next_document)
        sent_s = self._now_s()

        def end(status: int, head: bytes, content: bytes) -> None:
            self._num_documents_out -= 1
            if self._is_over and not self._load.drains_documents:
                return
            done_s = self._now_s()
            self._log.documents.append(
                Sent(
                    body=body,
                    intended_s=sent_s,
                    sent_s=sent_s,
                    done_s=done_s,
                    status=status,
                    head=head,
                    content=content,
                )
            )
            if self._is_over:
                if not self._num_documents_out:
                    self._drained.set()
            elif status == 200:
                self._send_document(connection)
            else:
                self._loop.call_later(_DOCUMENT_PAUSE_S, self._send_document_again, connection)

        self._num_documents_out += 1
        connection.send(self._documents[body], end)

    def _send_document_again(self, connection: _Connection) -> None:
        if self._is_over:
            return
        if connection.is_open:
            self._send_document(connection)
        else:
            self._forget(connection)
            self._in_background(self._replace_document_connection())

    async def _replace_document_connection(self) -> None:
        try:
            connection = await self._connect()
        except OSError:
            self._loop.call_later(
                _DOCUMENT_PAUSE_S, lambda: self._in_background(self._replace_document_connection())
            )
            return
        self._send_document(connection)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def retry_after_s(sent: Sent) -> float | None:
    """When a refused request was told to come again, as OpenAI's SDKs read it: milliseconds first."""
    milliseconds, seconds = sent.header("retry-after-ms"), sent.header("retry-after")
    if milliseconds is not None:
        return float(milliseconds) / 1000
    return None if seconds is None else float(seconds)

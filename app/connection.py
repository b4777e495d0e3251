"""One connection: uvicorn's protocol, with a limit and an answer for slow, oversized and broken clients.

uvicorn waits for a request head or body for ever, takes heads of any size, and answers what it cannot parse
in plain text. Here every wait has an end, a head has a cap, and each refusal is an OpenAI error with
``connection: close``. Laws: a connection always has a timer running while the client owes us bytes; nothing
is written between the lines of another answer.
"""

import asyncio
import re
import sys
import weakref
from dataclasses import dataclass
from typing import Any, cast

import httptools
import msgspec
import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from app.logs import request_id_var
from app.observe import (
    REFUSAL,
    REQUEST_ID_HEADER,
    UNMATCHED_ROUTE,
    HttpObserver,
    Outcome,
    Refusal,
    choose_request_id,
    record,
    request_id_of,
)
from app.wire import Error, ErrorResponse

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers, trailers included. Twice what nginx reads by default (4 buffers of 8 KiB)."""
# As nginx, which calls them lingering_timeout (5 s) and lingering_time: short, as nobody reads what comes.
_LINGER_S = 2.0
"""A connection that is only waiting to be closed is closed when nothing has come for so long."""
_MAX_LINGER_S = 30.0
"""... and at the latest after this: an upload that was refused half-way goes on until its client looks up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The limits of one connection."""

    header_timeout_s: float
    body_timeout_s: float
    observer: HttpObserver
    max_head_bytes: int = MAX_HEAD_BYTES


_MALFORMED = Refusal(
    status=400,
    message="The request is not valid HTTP/1.1.",
    code="malformed_request",
    reason="validation",
)
_UNKNOWN_METHOD = Refusal(
    # RFC 9110, 15.6.2: what a server answers that does not recognise the method.
    status=501,
    message="The request's method is not one that this server knows.",
    code="unknown_method",
    reason="validation",
)
_BAD_HOST = Refusal(
    # RFC 9112, 3.2: a server MUST answer 400 to HTTP/1.1 without Host, and to more than one.
    status=400,
    message="An HTTP/1.1 request needs exactly one Host header.",
    code="malformed_request",
    reason="validation",
)


# RFC 9110, 5.6.2: what a method is made of.
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(_TOKEN.pattern + rb" [^ ]+ HTTP/1\.[0-9]")


def is_of_unknown_method(head: bytes, error: BaseException | None) -> bool:
    """Whether all that is wrong with a request is that the parser does not know its method.

    Args:
        head: How the request begins, as far as it has come.
        error: Why the parser gave up: at the method's first letter that fits none, often before its end.
    """
    # Methods of RTSP are known to it, and have an error without a class of its own.
    is_about_method = isinstance(error, httptools.HttpParserInvalidMethodError) or (
        isinstance(error, httptools.HttpParserError) and str(error).startswith("Invalid method for HTTP")
    )
    if not is_about_method:
        return False
    # Empty lines before a request line are passed over (RFC 9112, 2.2).
    line, has_ended, _ = head.lstrip(b"\r\n").partition(b"\n")
    if has_ended:
        return _REQUEST_LINE.fullmatch(line.removesuffix(b"\r")) is not None
    return _TOKEN.fullmatch(line.partition(b" ")[0]) is not None


class _RefusedError(Exception):
    """Leaves a callback of the parser, which then stops parsing."""


class AnswerWriter:
    """Writes to a connection, and lets what is written first in a turn of the loop wait for what follows it.

    uvicorn writes an answer's head and its body apart. Each is a call into the kernel that wakes the client,
    and on a machine whose cores are all busy each waking costs a switch to the client and back.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None

    def write(self, data: bytes) -> None:
        """Write at the end of this turn, or with what follows in it."""
        if self._held is None:
            self._held = data
            self._loop.call_soon(self.flush)
        else:
            held, self._held = self._held, None
            self._transport.writelines((held, data))

    def flush(self) -> None:
        """Let go of what waits, also before the connection is closed; if the client closed it, drop it."""
        if self._held is not None:
            held, self._held = self._held, None
            if not self._transport.is_closing():
                self._transport.write(held)


class _AnswerTransport:
    """Where an answer is written to: the connection's transport, but for the way it writes and closes."""

    def __init__(self, protocol: "GuardedProtocol") -> None:
        self.write = protocol.writer.write
        self.is_closing = protocol.transport.is_closing
        # Weak, because the protocol knows the answer: in a ring, a body would outlive its request until the
        # garbage collector comes by, which counts objects and not bytes.
        self._protocol = weakref.ref(protocol)

    def close(self) -> None:
        if (protocol := self._protocol()) is not None:
            protocol.close_after_answer()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's httptools connection, with limits."""

    def __init__(
        self,
        guard: Guard,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._guard = guard
        self._deadline: asyncio.TimerHandle | None = None
        self._accepted_s = 0.0
        self._awaits_head = True
        """From the end of one message to the end of the next one's head."""
        self._head = b""
        """What came since the end of the message before, until the parser has made sense of it."""
        self._head_bytes = 0
        """Of the request line and the headers that the parser has finished."""
        self._loose_bytes = 0
        """Received since the last byte of a body: the parser may be collecting them in one endless header."""
        self._refusal: Refusal | None = None
        self._is_deaf = False
        """What comes in is dropped: the connection is only waiting to be closed."""
        self._has_heard = False
        """Something came in all the same, since we last looked."""

    # The connection ----------------------------------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.writer = AnswerWriter(transport, self.loop)
        self._await(self._guard.header_timeout_s)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self.transport.is_closing():
            self._has_heard = True
            return
        if self._deadline is None and self._awaits_head:
            # The first bytes on an idle connection, be they only empty lines.
            self._await(self._guard.header_timeout_s)
        if self._awaits_head:
            self._head += data
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > self._guard.max_head_bytes and not self._is_deaf:
            self._refuse(self._head_too_large)

    @override
    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up, for its own reasons or because a callback raised."""
        is_unknown = is_of_unknown_method(self._head, sys.exception())
        self._refuse(self._refusal or (_UNKNOWN_METHOD if is_unknown else _MALFORMED))

    # The parser's callbacks --------------------------------------------------------------------------------

    @override
    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._accepted_s = self.loop.time()
        if self._deadline is None:
            # It began in the bytes that ended the one before.
            self._await(self._guard.header_timeout_s)
        super().on_message_begin()

    @override
    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + len(b": \r\n")
        if self._head_bytes > self._guard.max_head_bytes:
            self._give_up(self._head_too_large)
        super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        assert self.parser is not None
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (num_hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._give_up(_BAD_HOST)
        super().on_headers_complete()
        # uvicorn gives it our transport, and would close that with the rest of a refused body unread.
        self.cycle.transport = cast("Any", _AnswerTransport(self))
        self._awaits_head = False
        self._head = b""
        self._await(self._guard.body_timeout_s)

    @override
    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._stop_waiting()
        self._awaits_head = True
        self._loose_bytes = 0
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        self.writer.flush()
        if not self._is_deaf:
            super().on_response_complete()

    @override
    def _unsupported_upgrade_warning(self) -> None:
        # An offer that we do not take up (RFC 9110, 7.8): curl's ``Upgrade: h2c``, for one.
        pass

    # Waiting -----------------------------------------------------------------------------------------------

    def _await(self, timeout_s: float) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(timeout_s, self._time_out, timeout_s)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self, timeout_s: float) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        is_head = self._awaits_head
        if self.flow.read_paused or (is_head and self._is_answering):
            # It is we who keep the client waiting.
            self._await(timeout_s)
            return
        what, setting = ("head", "header_timeout_s") if is_head else ("body", "body_timeout_s")
        self._refuse(
            Refusal(
                status=408,
                message=f"The request's {what} was not complete after {timeout_s:g} seconds ({setting}).",
                code="request_timeout",
                reason="timeout",
            )
        )

    # Refusing ----------------------------------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - None until the first head

    @property
    def _head_too_large(self) -> Refusal:
        return Refusal(
            status=431,
            message=f"The request's head is larger than {self._guard.max_head_bytes} bytes.",
            code="headers_too_large",
            reason="too_long",
        )

    def _give_up(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise _RefusedError(refusal.message)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and close, or only close, whichever leaves every other answer whole."""
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if self._awaits_head and self._is_answering:
            # An earlier request is still being answered; its answer closes the connection.
            self.cycle.keep_alive = False
            self._is_deaf = True
            return
        if self._awaits_head:
            request_id = choose_request_id(None)
            self._record(refusal, request_id)
        elif not self._is_answering or self.cycle.response_started or self.pipeline:
            # The body is of no use any more, or our answer would land in another one.
            self.writer.flush()
            self.transport.close()
            return
        else:
            # The application runs already. It is told that the client left, and records our refusal.
            self.cycle.scope[REFUSAL] = refusal  # pyright: ignore[reportGeneralTypeIssues] - a key of ours
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            request_id = request_id_of(cast("dict[str, Any]", self.cycle.scope))
        self._write(refusal, request_id)
        self._close_gently()

    def _record(self, refusal: Refusal, request_id: str) -> None:
        """Count what no application will, and log it under the id that the client is told."""
        token = request_id_var.set(request_id)
        record(
            self._guard.observer,
            Outcome(
                route=UNMATCHED_ROUTE,
                method="other",
                status=refusal.status,
                duration_s=self.loop.time() - self._accepted_s if self._accepted_s else 0.0,
                failure=refusal.reason,
                code=refusal.code,
            ),
        )
        request_id_var.reset(token)

    def _write(self, refusal: Refusal, request_id: str) -> None:
        body = msgspec.json.encode(
            ErrorResponse(
                Error(message=refusal.message, type="invalid_request_error", param=None, code=refusal.code)
            )
        )
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (REQUEST_ID_HEADER, request_id.encode()),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        self.writer.write(STATUS_LINE[refusal.status] + b"".join(lines) + b"\r\n" + body)

    def close_after_answer(self) -> None:
        """What uvicorn calls after an answer that is the connection's last."""
        self.writer.flush()
        if self._awaits_head and not self._is_deaf:
            self.transport.close()
        else:
            self._close_gently()

    def _close_gently(self) -> None:
        """Close our half, and drop what still comes until the client closes its own.

        Closing at once, with bytes unread, makes the kernel reset the connection, and the client may lose
        the answer (RFC 9112, 9.6).
        """
        self._stop_waiting()
        self._is_deaf = True
        self.writer.flush()
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._linger(until_s=self.loop.time() + _MAX_LINGER_S)

    def _linger(self, *, until_s: float) -> None:
        self._has_heard = False
        self._deadline = self.loop.call_later(_LINGER_S, self._linger_on, until_s)

    def _linger_on(self, until_s: float) -> None:
        if self._has_heard and self.loop.time() < until_s:
            self._linger(until_s=until_s)
        else:
            self.transport.close()

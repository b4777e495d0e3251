"""The worker's end of its two sockets: passes as they come, urgent ones apart, and answers as they go.

Urgent frames have a socket of their own, so that one of them never waits behind the pixels of another pass.

Rule 1: ``look`` never waits and never raises: it is called in the middle of a pass, which must not suffer
        from what the gateway does. What is wrong is kept, and raised by ``next``.
Rule 2: an urgent frame that has begun is read to its end: pieces of it would cost a block of waiting each.
"""

import select
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from model.types import Features
from model.worker import frames
from model.worker.assembly import Assembler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """One pass that the gateway wants computed."""

    pass_id: int
    features: Sequence[Features]
    is_urgent: bool
    may_interrupt: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(one.num_tokens for one in self.features)


class Mailbox:
    """Owns what has come and is not done yet."""

    def __init__(self, gateway: socket.socket, urgent: socket.socket) -> None:
        """Listen to both sockets; answers go to the first. Neither is closed here."""
        self._gateway = gateway
        self._urgent = urgent
        self._assemblers = {
            one.fileno(): (one, Assembler(frames.unpack_for_worker)) for one in (gateway, urgent)
        }
        self._poll = select.poll()
        for fd in self._assemblers:
            self._poll.register(fd, select.POLLIN)
        self._urgent_passes: deque[Pass] = deque()
        self._others: deque[Pass | frames.Load | frames.Stop] = deque()
        self._end: Exception | None = None
        """Why nothing more will come."""

    @property
    def num_urgent(self) -> int:
        """Urgent passes that wait."""
        return len(self._urgent_passes)

    def look(self) -> None:
        """Take in what has come. Costs 0.5 us where nothing has (poll(2) of two sockets, Linux 6.18)."""
        if self._end is None:
            self._take_in(timeout_ms=0)

    def next(self) -> Pass | frames.Load | frames.Stop:
        """What is to be done now: urgent passes first, then everything in its order. Waits for it.

        Raises:
            EOFError: The gateway is gone.
            ConnectionError: The same, while data was under way.
            FrameError: The gateway sent what is no message for a worker.
            MemoryError: There is none for what the gateway sent.
        """
        while self._end is None:
            has_work = bool(self._urgent_passes or self._others)
            self._take_in(timeout_ms=0 if has_work else None)
            if has_work and self._end is None:
                return self._urgent_passes.popleft() if self._urgent_passes else self._others.popleft()
        raise self._end

    def next_interrupting(self) -> Pass | None:
        """The next urgent pass, if it may run in the middle of another."""
        if self._end is None and self._urgent_passes and self._urgent_passes[0].may_interrupt:
            return self._urgent_passes.popleft()
        return None

    def put_back(self, one: Pass) -> None:
        """Have an urgent pass be the next again."""
        self._urgent_passes.appendleft(one)

    def send(self, message: frames.ToGateway, body: memoryview | bytes = b"") -> None:
        """Send a frame to the gateway, whole. Raises ``ConnectionError`` when it is gone."""
        head = frames.pack_head(message, body_bytes=len(body))
        if len(body) <= frames.CHUNK_BYTES:
            # One write is one waking of the gateway: for a query that is most of what this socket costs.
            self._gateway.sendall(head + body)
            return
        self._gateway.sendall(head)
        self._gateway.sendall(body)

    def close(self, error: Exception) -> None:
        """Take nothing more; ``next`` raises the error."""
        self._end = self._end or error

    def _take_in(self, *, timeout_ms: int | None) -> None:
        try:
            for fd, _ in self._poll.poll(timeout_ms):
                self._receive(*self._assemblers[fd])
        except (EOFError, ConnectionError, MemoryError, frames.FrameError) as error:
            self.close(error)

    def _receive(self, gateway: socket.socket, assembler: "Assembler[frames.ToWorker]") -> None:
        while True:
            num_bytes = gateway.recv_into(assembler.space)
            if num_bytes == 0:
                raise EOFError("the gateway closed its socket")
            self._sort(assembler.take(num_bytes))
            if gateway is not self._urgent or not assembler.is_within_frame:
                return

    def _sort(self, arrived: Sequence[tuple[frames.ToWorker, memoryview]]) -> None:
        for message, body in arrived:
            if not isinstance(message, frames.Run):
                self._others.append(message)
                continue
            one = Pass(
                pass_id=message.pass_id,
                features=frames.unpack_run(message, body),
                is_urgent=message.is_urgent,
                may_interrupt=message.may_interrupt,
            )
            (self._urgent_passes if one.is_urgent else self._others).append(one)

"""The least that a client pays for a local answer that takes a while: the floor under a query's way.

A server that does nothing but wait. It takes the request in, sleeps as long as a small pass takes, and sends a
prepared answer of the same size. What its client sees beyond the sleep is the client's own work, loopback and
two wakings by the kernel: no gateway can cost less, so this is taken off what a gateway is said to cost.
"""

import asyncio
import sys
import time
from typing import cast

import uvloop

PASS_S = 0.010
ANSWER = b'{"data": "' + b"A" * 2_300 + b'"}'


class Waiting(asyncio.Protocol):
    """One connection: each request is answered after the sleep, in one write."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        received = time.perf_counter()
        asyncio.get_running_loop().call_later(PASS_S, self._answer, received)

    def _answer(self, received: float) -> None:
        waited_ms = (time.perf_counter() - received) * 1e3
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-length: {len(ANSWER)}\r\nx-queue-time-ms: 0\r\n"
            f"x-compute-time-ms: {waited_ms:.3f}\r\n\r\n"
        )
        self._transport.write(head.encode() + ANSWER)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Waiting, "127.0.0.1", port)
    print("listening", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))

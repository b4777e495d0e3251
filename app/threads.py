"""Blocking calls that must not hold up the end of the program."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T], *, name: str) -> T:
    """Run a blocking call in a thread that nobody waits for.

    ``asyncio.to_thread`` would not do: whoever ends the event loop waits for the threads of its executor, so
    a download that was cancelled would hold the process until it is whole. Cancelled here, the call goes on
    unheard and ends with the process.

    Args:
        call: What to run.
        name: Of the thread.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def succeed(result: T) -> None:
        if not outcome.done():
            outcome.set_result(result)

    def fail(error: Exception) -> None:
        if not outcome.done():
            outcome.set_exception(error)

    def run() -> None:
        # The loop may be closed by then: nobody is there to be told.
        with suppress(RuntimeError):
            try:
                result = call()
            except Exception as error:
                loop.call_soon_threadsafe(fail, error)
            else:
                loop.call_soon_threadsafe(succeed, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await outcome

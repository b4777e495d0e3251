"""How many may do something at once: in all, and for each host that they do it with."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Places:
    """Owns a number of places. Whoever finds none waits, in the order they came to their host."""

    def __init__(self, *, max_taken: int, max_taken_per_host: int) -> None:
        self.num_taken = 0
        self._of_all = asyncio.Semaphore(max_taken)
        self._max_taken_per_host = max_taken_per_host
        # Owns nothing for hosts that nobody asks for.
        self._of_hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def is_free(self, host: str) -> bool:
        """Whether ``take`` would give a place at once."""
        of_host = self._of_hosts.get(host)
        return not self._of_all.locked() and (of_host is None or not of_host.locked())

    @asynccontextmanager
    async def take(self, host: str) -> AsyncGenerator[None]:
        """Wait for a place, and hold it until the block ends."""
        of_host = self._of_hosts.setdefault(host, asyncio.Semaphore(self._max_taken_per_host))
        # The host's first: whoever waits for a slow host must not keep others from fast ones.
        async with of_host, self._of_all:
            self.num_taken += 1
            try:
                yield
            finally:
                self.num_taken -= 1

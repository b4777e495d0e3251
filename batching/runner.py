"""The seam below the batcher: whatever computes a pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunResult:
    """What a runner made of a pass."""

    results: Sequence[object]
    """One for each payload, in order. An ``Exception`` fails its own entry and no other."""
    device_s: float
    """Time the device spent on the pass."""


class Runner(Protocol):
    """Computes one pass at a time. One runner serves one slot."""

    async def wait_ready(self) -> None:
        """Return when a pass may be run: at once, or when a restart is over.

        An exception from here says that the runner will never be ready again.
        """
        ...

    async def run(self, payloads: Sequence[object]) -> RunResult:
        """Compute a pass.

        Raises:
            RunnerLostError: The runner died under the pass, which may be tried again, here or elsewhere.
            Exception: Anything else says that the pass cannot be computed as it is.
        """
        ...

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
    """Time the device spent on the pass, without urgent passes that ran in the middle of it."""
    num_padding_tokens: int = 0
    """Tokens that were computed beside those of the payloads; 0 where nothing is padded."""


class Runner(Protocol):
    """Computes passes, one after the other. One runner serves one slot.

    The simplest one has a depth of 1 and cannot be interrupted: it is handed a pass when the one before
    has come back. One with a depth of 2 may be handed the next pass while the first runs (it is *staged*,
    so that the device never waits for the gateway), and an urgent one beside them.
    """

    @property
    def depth(self) -> int:
        """1, or 2: passes that it can be handed at once, apart from urgent ones."""
        return 1

    @property
    def can_interrupt(self) -> bool:
        """Whether a running pass makes room for an urgent one between two of its layers."""
        return False

    @property
    def is_ready(self) -> bool:
        """Whether a pass may be run now. While it is false ``wait_ready`` does not return."""
        return True

    async def wait_ready(self) -> None:
        """Return when a pass may be run: at once, or when a restart is over.

        An exception from here says that the runner will never be ready again.
        """
        ...

    async def run(self, payloads: Sequence[object], *, is_urgent: bool, may_interrupt: bool) -> RunResult:
        """Compute a pass.

        With a depth of 2 up to three calls are under way at once, and at most two of them are urgent.
        They begin in the order in which they came, but urgent ones before all others.

        Args:
            payloads: What the pass holds.
            is_urgent: It begins before every pass that is not urgent and has not begun.
            may_interrupt: If the pass that runs is not urgent, it begins between two layers of it.

        Raises:
            RunnerLostError: The runner died under the pass, which may be tried again, here or elsewhere.
                Its ``has_begun`` says whether the pass may be to blame.
            RunnerMemoryError: It has no memory for the pass; for a smaller one it may.
            Exception: Anything else says that the pass cannot be computed as it is.
        """
        ...

"""What bare workers do at best: passes cut beforehand, with no request, no tokeniser and no gateway beside them.

Law: a worker's next pass lies with it when one ends, so that the way to its process and back is nobody's pause.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

from model import Features
from model.worker import Worker

PASSES_OUT = 2
"""For each worker: one that runs, and the next."""
MIN_COUNTED_PASSES = 3
"""Of each worker, however long they take."""
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A pass that came back."""

    num_tokens: int
    at_s: float


async def raw_tokens_per_s(
    workers: Sequence[Worker], passes: Sequence[Sequence[Features]], *, seconds: float
) -> float:
    """Tokens a second of all workers together, while none of them ever waits.

    Args:
        workers: Idle ones.
        passes: Run in this order, over and over; a block may end anywhere in it.
        seconds: How long all workers are kept full, unless few passes fit into that.
    """
    answered: list[list[Answered]] = [[] for _ in workers]
    waiting = cycle(passes)
    started_s = time.perf_counter()
    full_until_s: list[float] = []

    def is_over() -> bool:
        is_late = time.perf_counter() - started_s >= seconds
        return is_late and all(len(own) > MIN_COUNTED_PASSES for own in answered)

    async def work(worker: Worker, own: list[Answered]) -> None:
        while not is_over():
            one = next(waiting)
            await worker.run(one)
            own.append(Answered(num_tokens=num_tokens_of([one]), at_s=time.perf_counter()))
        full_until_s.append(time.perf_counter())

    await asyncio.gather(
        *(work(worker, own) for worker, own in zip(workers, answered, strict=True) for _ in range(PASSES_OUT))
    )
    return full_rate(answered, full_until_s=min(full_until_s))


def full_rate(answered: Sequence[Sequence[Answered]], *, full_until_s: float) -> float:
    """Tokens a second of all workers, each from its first answer to its last one while all were full.

    A worker computes one pass after the other, so between two of its answers lies exactly the work of the second.
    What it was at when the clock began or ended is left out with its time, and nobody's idle end counts.

    Args:
        answered: The passes of each worker, in the order of their answers.
        full_until_s: When a worker was first given no next pass.
    """
    rates: list[float] = []
    for own in answered:
        counted = [one for one in own if one.at_s <= full_until_s]
        elapsed_s = counted[-1].at_s - counted[0].at_s
        rates.append(sum(later.num_tokens for _, later in pairwise(counted)) / elapsed_s)
    return sum(rates)


async def raw_seconds(workers: Sequence[Worker], passes: Sequence[Sequence[Features]]) -> float:
    """Seconds of every pass once, from the first one sent to the last one answered."""
    waiting = iter(passes)

    async def work(worker: Worker) -> None:
        for one in waiting:
            await worker.run(one)

    started_s = time.perf_counter()
    await asyncio.gather(*(work(worker) for worker in workers for _ in range(PASSES_OUT)))
    return time.perf_counter() - started_s


def spread_out(ordered: Sequence[list[Features]]) -> list[list[Features]]:
    """The same passes in another order, every stretch of which is as mixed as the whole.

    Multiples of the golden ratio, without their whole part, are spread evenly however many are taken (Knuth, The
    Art of Computer Programming, volume 3, section 6.4, theorem S).
    """
    return [ordered[index] for index in sorted(range(len(ordered)), key=lambda index: index * _GOLDEN % 1)]


def num_tokens_of(passes: Sequence[Sequence[Features]]) -> int:
    """Tokens of all inputs of all passes."""
    return sum(one.num_tokens for cut in passes for one in cut)

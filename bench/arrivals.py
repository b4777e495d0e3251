"""When requests are sent, decided before the clock runs: the same seed gives the same moments.

An open loop sends at these moments whatever became of the requests before. A loop that waits for answers sends
less while the server is slow, and so leaves out the very requests that would have waited (coordinated omission).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The moments of one block, in seconds from its start, and what is sent at each."""

    offsets_s: Sequence[float]
    bodies: Sequence[int]
    """Which of the prepared bodies goes out, for each moment."""
    num_warm: int
    """So many at the beginning are sent, and not counted."""
    warm_s: float
    """When the counted ones begin."""

    @property
    def end_s(self) -> float:
        """When the last of them is sent."""
        return self.offsets_s[-1] if self.offsets_s else self.warm_s


def arrivals(
    *, rate_per_s: float, count: int, num_bodies: int, warm_s: float, burstiness: float = 1.0, seed: int
) -> Arrivals:
    """Draw as many as are wanted after the warm-up, and those of the warm-up before them.

    The number is fixed and the length of the block random, because a percentile needs a number.

    Args:
        rate_per_s: Mean arrivals a second.
        count: Arrivals that count.
        num_bodies: Bodies to choose from.
        warm_s: The first of those that count comes after this.
        burstiness: Coefficient of variation of the gaps: 1 is a Poisson process, 2 to 3 is what bursty clients
            do (gamma distributed gaps, as in BurstGPT, arXiv:2401.17644).
        seed: Equal seeds give equal arrivals.
    """
    rng = random.Random(seed)
    shape = burstiness**-2
    scale_s = burstiness**2 / rate_per_s
    warm = _until(rng, warm_s, shape, scale_s)
    gaps_s = (rng.gammavariate(shape, scale_s) for _ in range(count))
    offsets_s = [*warm, *(warm_s + s for s in accumulate(gaps_s))]
    return Arrivals(
        offsets_s=offsets_s,
        bodies=[rng.randrange(num_bodies) for _ in offsets_s],
        num_warm=len(warm),
        warm_s=warm_s,
    )


def _until(rng: random.Random, end_s: float, shape: float, scale_s: float) -> list[float]:
    moments: list[float] = []
    now_s = rng.gammavariate(shape, scale_s)
    while now_s < end_s:
        moments.append(now_s)
        now_s += rng.gammavariate(shape, scale_s)
    return moments


def no_arrivals(warm_s: float) -> Arrivals:
    """A block without queries."""
    return Arrivals(offsets_s=(), bodies=(), num_warm=0, warm_s=warm_s)

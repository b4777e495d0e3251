"""What a run gave: its blocks by arm and round, and the ratios that they allow.

Law: ratios are of arms of the same round. A round in which one arm's load was not sent on time counts for none.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from bench.arms import MIX, PEER, PEERS, QUERIES, Arm
from bench.openloop import Log, retry_after_s
from bench.report import Ratio, is_quiet, paired_ratio
from bench.scrape import device_seconds, samples_of
from bench.tails import Punctuality, Rates, Tail, count_statuses, lane_shares, tail_of, tail_ratio

MAX_RAW_DEVIATION = 0.03
"""RAW against itself is no further from 1 in a run that is stored."""

TARGETS = {
    "D / RAW, useful tokens": ">= 0.95; 0.90 on two cores",
    "MIX / RAW, useful tokens": ">= 0.95; 0.90 on two cores",
    "MIX / Q, p99": "<= 3",
    "FIFO / MIX, p99": ">= 20",
    "SEED / MIX, p99": ">= 20",
    "MIX+long / MIX, p99": "<= 1.5",
    "PEER MIX / MIX, p99": ">= 20",
    "MIX / PEER MIX, useful tokens": ">= 2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one arm gave in one round."""

    latencies_s: Sequence[float] = ()
    queue_ms: Sequence[float] = ()
    """Of the queries, as the server tells it."""
    rates: Rates | None = None
    """Of the gateway's passes in mid-flow; a peer has none."""
    drained_rates: Rates | None = None
    """Of answers until the last document's, of a peer and of the arms that it is compared with."""
    statuses: Mapping[str, int] = field(default_factory=dict[str, int])
    document_statuses: Mapping[str, int] = field(default_factory=dict[str, int])
    punctuality: Punctuality | None = None
    histograms: Mapping[str, float] = field(default_factory=dict[str, float])
    """99th percentiles of the server's own histograms over the block."""
    cores: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the gateway and the load took of the processor: 0.1 is a tenth of one core."""

    @property
    def is_valid(self) -> bool:
        """Whether it measured the server rather than the sender."""
        return self.punctuality is None or self.punctuality.is_good


@dataclass(slots=True)
class Run:
    """What the rounds gave."""

    raw_per_s: list[Sequence[float]] = field(default_factory=list)
    """One list a round: before each arm, and behind the last one."""
    blocks: dict[str, list[Block]] = field(default_factory=dict)
    """By arm, one a round."""
    num_invalid_rounds: int = 0

    def add(self, raw_per_s: Sequence[float], blocks: Mapping[str, Block]) -> None:
        """Take a round in, whole or not at all: ratios are of arms of the same round.

        Args:
            raw_per_s: Of the bare workers before the first arm, between each two and behind the last one.
            blocks: By arm, in the same order in every round.
        """
        assert len(raw_per_s) == len(blocks) + 1, "an arm lies between two blocks of the bare workers"
        late = {name: block.punctuality for name, block in blocks.items() if not block.is_valid}
        if late:
            self.num_invalid_rounds += 1
            print(
                f"  a round is left out: {', '.join(f'{name} {how}' for name, how in late.items())}",
                file=sys.stderr,
            )
            return
        self.raw_per_s.append(raw_per_s)
        for name, block in blocks.items():
            self.blocks.setdefault(name, []).append(block)

    def control(self) -> Ratio:
        """RAW against itself: its blocks in even places over those in odd ones."""
        return paired_ratio(
            [mean(blocks[1::2]) for blocks in self.raw_per_s],
            [mean(blocks[::2]) for blocks in self.raw_per_s],
        )

    def latencies_s(self, arm: str) -> list[Sequence[float]]:
        """One list a round."""
        return [block.latencies_s for block in self.blocks[arm]]

    def all_latencies_s(self, arm: str) -> list[float]:
        return [one for block in self.blocks[arm] for one in block.latencies_s]

    def over_raw(self, arm: str) -> Ratio | None:
        """Useful tokens of an arm over those of RAW before and behind it; ``None`` if a block was too short."""
        rates = [block.rates for block in self.blocks[arm]]
        useful = [one.useful_per_s for one in rates if one is not None]
        if len(useful) < len(rates):
            return None
        place = list(self.blocks).index(arm)
        return paired_ratio(useful, [mean(blocks[place : place + 2]) for blocks in self.raw_per_s])

    def over_peer(self, arm: str, peer_arm: str) -> Ratio | None:
        """Useful tokens of an arm over those of a peer's, both until their last document; else ``None``."""
        pairs = [
            (a.drained_rates.useful_per_s, b.drained_rates.useful_per_s)
            for a, b in zip(self.blocks[arm], self.blocks[peer_arm], strict=True)
            if a.drained_rates is not None and b.drained_rates is not None
        ]
        if len(pairs) < len(self.blocks[arm]):
            return None
        return paired_ratio([a for a, _ in pairs], [b for _, b in pairs])

    def tails(self, arm: str, other: str) -> Ratio | None:
        """The 99th percentile of one arm over that of another; ``None`` where one of them was not run."""
        if arm not in self.blocks or other not in self.blocks:
            return None
        return tail_ratio(self.latencies_s(arm), self.latencies_s(other))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """What became of twice the queries that the server can answer."""

    capacity_per_s: float
    offered_per_s: float
    """Without those that came again."""
    statuses: Mapping[str, int]
    document_statuses: Mapping[str, int]
    answered_tail: Tail
    """Of the queries that were accepted."""
    lane_shares: Mapping[str, float]
    """Of the device's time, from the end of the warm-up to the last query that was offered."""
    retry_statuses: Mapping[str, int]
    """Of refused queries that came again when they were told, while the others went on."""
    late_retry_statuses: Mapping[str, int]
    """Of those whose moment came when no more queries were offered."""
    num_untold: int
    """Refused without a moment, so that they never came again."""
    longest_retry_after_s: float

    @property
    def is_every_request_answered(self) -> bool:
        """With vectors, or with 429."""
        told = (self.statuses, self.document_statuses, self.retry_statuses, self.late_retry_statuses)
        return {status for statuses in told for status in statuses} <= {"200", "429"}


def overload_of(log: Log, *, capacity_per_s: float, offered_per_s: float) -> Overload:
    """What a block says in which refused queries came again and the server's counters were read."""
    during = [one for one in log.retries if one.intended_s <= log.end_s]
    after = [one for one in log.retries if one.intended_s > log.end_s]
    refused = [one for one in log.queries if one.status == 429]
    waits_s = [wait_s for one in refused if (wait_s := retry_after_s(one)) is not None]
    first_s, last_s = (device_seconds(samples_of(scrape.content.decode())) for scrape in log.scrapes)
    return Overload(
        capacity_per_s=capacity_per_s,
        offered_per_s=offered_per_s,
        statuses=count_statuses(log.queries),
        document_statuses=count_statuses(log.documents),
        answered_tail=tail_of([one.latency_s for one in log.queries if one.status != 429]),
        lane_shares=lane_shares(first_s, last_s),
        retry_statuses=count_statuses(during),
        late_retry_statuses=count_statuses(after),
        num_untold=len(refused) - len(waits_s),
        longest_retry_after_s=max(waits_s, default=0.0),
    )


def ratios_of(run: Run, arms: Sequence[Arm]) -> dict[str, Ratio | None]:
    """The ratios that the arms of the run allow, by what they are."""
    names = [arm.name for arm in arms]
    loaded = [arm for arm in arms if arm.has_documents]
    # What a peer does in mid-flow is not known, so it is held against arms that were drained as well.
    ratios = {
        f"{arm.name} / RAW, useful tokens": run.over_raw(arm.name) for arm in loaded if arm.policy != PEER
    }
    mixed = [arm.name for arm in loaded if arm.has_queries]
    if MIX.name not in names:
        return ratios | {f"{name} / Q, p99": run.tails(name, QUERIES.name) for name in mixed}
    ratios["MIX / Q, p99"] = run.tails(MIX.name, QUERIES.name)
    ratios |= {f"{name} / MIX, p99": run.tails(name, MIX.name) for name in mixed if name != MIX.name}
    ratios |= {
        f"{arm.name} / {peer_arm.name}, useful tokens": run.over_peer(arm.name, peer_arm.name)
        for arm, peer_arm in PEERS.items()
        if peer_arm.name in names
    }
    return ratios


def is_quotable(control: Ratio) -> bool:
    """Whether RAW against itself allows to store and to quote the run."""
    return is_quiet(control) and abs(control.median - 1) <= MAX_RAW_DEVIATION

"""What is compared: the models, how the gateway is set for each policy, and what load each arm brings.

All settings of all arms stand here and nowhere else.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.client import SERVE

LANES, FIFO, SEED, PEER = "lanes", "fifo", "seed", "peer"


TAU_7B_MS = 31.0
"""1,024 tokens at the 33,000 a second of a 7B model on a large card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One gateway server: its settings, and whether its clients tell queries from documents."""

    name: str
    settings: Mapping[str, str | int | float] = field(default_factory=dict[str, str | int | float])
    """By the names of the command line, without the dashes."""
    is_one_lane: bool = False
    """Queries are sent as documents, so everything waits in one line."""

    def arguments(self) -> list[str]:
        """The settings as options of the command line."""
        return [word for name, value in self.settings.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRate:
    """How many queries are sent a second."""

    per_s: float | None = None
    of_capacity: float | None = None
    """In place of a number: this part of what the server answers while it does nothing else."""

    @classmethod
    def parse(cls, text: str) -> "QueryRate":
        """``30``, or ``10%`` of the capacity.

        Raises:
            ValueError: It is neither, or not above 0.
        """
        number = float(text.removesuffix("%"))
        if not number > 0:
            raise ValueError(f"{text} is no rate")
        return cls(of_capacity=number / 100) if text.endswith("%") else cls(per_s=number)

    def per_second(self, capacity_per_s: float | None) -> float:
        """The rate in numbers, where the server answers so many a second."""
        if self.of_capacity is None:
            assert self.per_s is not None, "a rate is a number or a part"
            return self.per_s
        assert capacity_per_s is not None, "the capacity is measured where a rate is a part of it"
        return self.of_capacity * capacity_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A load on a policy's server."""

    name: str
    policy: str
    has_queries: bool
    has_documents: bool
    has_long_documents: bool = False
    """Two in a hundred documents are as long as the model reads."""
    query_rate: QueryRate | None = None
    """``None``: that of the run."""


DOCUMENTS = Arm(name="D", policy=LANES, has_queries=False, has_documents=True)
QUERIES = Arm(name="Q", policy=LANES, has_queries=True, has_documents=False)
MIX = Arm(name="MIX", policy=LANES, has_queries=True, has_documents=True)
MIX_LONG = Arm(name="MIX+long", policy=LANES, has_queries=True, has_documents=True, has_long_documents=True)
MIX_FIFO = Arm(name="FIFO", policy=FIFO, has_queries=True, has_documents=True)
MIX_SEED = Arm(name="SEED", policy=SEED, has_queries=True, has_documents=True)
PEER_DOCUMENTS = Arm(name="PEER D", policy=PEER, has_queries=False, has_documents=True)
PEER_MIX = Arm(name="PEER MIX", policy=PEER, has_queries=True, has_documents=True)

PEERS = {DOCUMENTS: PEER_DOCUMENTS, MIX: PEER_MIX}
"""The same load on the gateway and on a peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How long texts are, in words; one of the benchmarks' words is one token of MiniLM's tokenizer."""

    median: int
    sigma: float
    least: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A model, and the load and the settings that suit it."""

    name: str
    loader: str
    """Import path of what loads it in a worker."""
    program: tuple[str, ...]
    """Starts a gateway that serves it."""
    lanes: Mapping[str, str | int | float] = field(default_factory=dict[str, str | int | float])
    """Settings of the gateway in the arms with lanes; what is not said is the gateway's default."""
    big_pass_tokens: int
    """A pass of the FIFO arm, which bounds only what fits into memory."""
    max_tokens: int
    """What the model reads of an input."""
    num_workers: int = 0
    device: str = "cpu"
    query_rate: QueryRate
    query_words: Words
    document_words: Words
    overload_words: int
    """Length of the queries of the overload: long ones, so that the device is overloaded and not HTTP."""
    min_cosine: float = 0.9999
    """Between an answered vector and the same text's from the bare worker."""

    def policies(self) -> dict[str, Policy]:
        """The servers, by name."""
        # No bound in time, no way in between: what other servers do.
        unbounded = {"max-pass-ms": 60_000, "max-document-pass-ms": 60_000, "interruption-share": 0}
        queues = dict.fromkeys(("max-query-queue-s", "max-document-queue-s", "max-batch-queue-s"), 3_600)
        whole_pass = {**unbounded, **queues, "max-pass-tokens": self.big_pass_tokens}
        # The first service: at most 16 inputs, a wait of 50 ms for company, one queue, no bound in tokens.
        all_tokens = 16 * self.max_tokens
        seed = {**unbounded, **queues, "max-pass-tokens": all_tokens}
        policies = (
            Policy(name=LANES, settings=self.lanes),
            Policy(name=FIFO, settings=whole_pass, is_one_lane=True),
            Policy(name=SEED, settings={**seed, "max-batch-size": 16, "max-wait-ms": 50}, is_one_lane=True),
        )
        return {policy.name: policy for policy in policies}

    def varied(self, name: str, value: str) -> Policy:
        """The lanes with another value of one setting. Bounds that follow tau here follow the new one."""
        follows = name == "max-pass-ms" and name in self.lanes
        bounds = bounds_ms(float(value)) if follows else {}
        return Policy(name=f"{name}={value}", settings={**self.lanes, **bounds, name: value})

    @property
    def base_arguments(self) -> list[str]:
        """Options that the gateways of all policies share."""
        workers = ["--workers", str(self.num_workers)] if self.num_workers else []
        # `laneway serve` as in SERVE names the device itself.
        return workers if self.program == SERVE else ["--device", self.device, *workers]


def bounds_ms(tau_ms: float) -> dict[str, float]:
    """Passes with queries take tau and are filled to all of it, passes of documents take twice that."""
    return {"max-pass-ms": tau_ms, "max-document-pass-ms": 2 * tau_ms, "fill-ms": tau_ms}


_SHORT = Words(median=16, sigma=0.5, least=6, most=62)


def _gateway(loader: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "bench.serve", loader)


def _sleeping(name: str, loader: str) -> Setup:
    return Setup(
        name=name,
        loader=loader,
        program=_gateway(loader),
        lanes=bounds_ms(TAU_7B_MS),
        big_pass_tokens=16_384,
        max_tokens=8_192,
        num_workers=1,
        query_rate=QueryRate(per_s=40),
        query_words=_SHORT,
        document_words=Words(median=320, sigma=0.8, least=48, most=1_998),
        overload_words=254,
    )


def _random_gme(size: str) -> Setup:
    loader = f"bench.random_gme:load_{size}"
    return Setup(
        name=f"gme-{size}",
        loader=loader,
        program=_gateway(loader),
        lanes=bounds_ms(TAU_7B_MS),
        big_pass_tokens=16_384,
        max_tokens=8_192,
        device="cuda",
        query_rate=QueryRate(per_s=40),
        query_words=_SHORT,
        document_words=Words(median=320, sigma=0.8, least=48, most=1_998),
        overload_words=254,
        min_cosine=0.999,
    )


SETUPS = {
    setup.name: setup
    for setup in (
        Setup(
            name="minilm",
            loader="model.loading:load_encoder",
            program=SERVE,
            big_pass_tokens=4_096,
            max_tokens=256,
            # Cores differ by a factor of four. On all of them a tenth leaves most of the time to documents.
            query_rate=QueryRate(of_capacity=0.1),
            query_words=Words(median=10, sigma=0.5, least=4, most=62),
            document_words=Words(median=100, sigma=0.7, least=48, most=254),
            overload_words=126,
        ),
        _sleeping("sleeping-7b", "bench.sleeping:load_eager_7b"),
        _sleeping("sleeping-7b-graphs", "bench.sleeping:load_graphs_7b"),
        Setup(
            name="sleeping-quick",
            loader="bench.sleeping:load_quick",
            program=_gateway("bench.sleeping:load_quick"),
            big_pass_tokens=16_384,
            max_tokens=8_192,
            num_workers=1,
            query_rate=QueryRate(per_s=100),
            query_words=_SHORT,
            document_words=Words(median=40, sigma=0.7, least=16, most=254),
            overload_words=254,
        ),
        _random_gme("2b"),
        _random_gme("7b"),
        _random_gme("tiny"),
    )
}
"""By name. ``sleeping-quick`` and ``gme-tiny`` only show that everything runs."""

NEVER_STORED = frozenset({"sleeping-quick", "gme-tiny"})

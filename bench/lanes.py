"""Queries among documents: latency and throughput of the lanes, against what else could be done, in one run.

    python -m bench.lanes [--engine minilm] [--rounds 6] [--queries 1100] [--texts 512]
                          [--rate 10%] [--burstiness 1] [--device cuda] [--vary max-pass-ms=25,50,100]
                          [--peer http://127.0.0.1:7997 --peer-model NAME]

Engines: minilm (the embedded model), sleeping-7b and sleeping-7b-graphs (a card's times where there is none,
bench/sleeping.py), gme-2b and gme-7b (published sizes, random weights; they want --device cuda, the default).

Queries come at a rate in numbers, or at a part of the server's capacity for them: what it answers of such queries a
second while 16 are always under way and nothing else is asked, measured at the start.

The load comes from a process of its own (bench/openloop.py): queries at moments drawn beforehand, documents of
spread lengths with so many requests under way that 512 inputs always wait. All vectors are compared with those
of the bare workers. One server for each policy is started once, and idles when it is not its turn. Arms, in turn
within each round, in every second round the other way round:
  RAW        bare workers that never wait, no gateway: texts sorted by length, in passes of the size that was
             fastest in the median of three tries, two passes out for each worker
  D          documents alone
  Q          queries alone
  MIX        both, in their lanes
  MIX+long   the same, two in a hundred documents as long as the model reads (where that is longer than the others)
  FIFO       both in one lane, in passes that only memory bounds
  SEED       both in one lane, 16 inputs a pass and a wait of 50 ms for company
  PEER D, PEER MIX   documents alone and both, sent to another server that speaks OpenAI's API (--peer)
RAW runs before each arm and behind the last one; every arm is held against the two beside it. The control is the
blocks of RAW in even places over those in odd ones: no further than 3 % from 1, or nothing is stored.

Afterwards, once: OVERLOAD, twice the long queries that a server without other work can answer, and documents.
What is refused comes again, once, when it was told to. An answer that is neither 200 nor 429 fails the run.

Throughput is told as a ratio to RAW, round by round: tokens of the passes that a gateway counted in the block, a
count that must agree with its answers. A peer counts nothing for us: beside one, documents of D and MIX are waited
for as its own are, and the ratio is of answered tokens until the last document. A 99th percentile is that of all
rounds together, and is told of 1,000 queries or more; its interval comes from drawing rounds again. Whatever is no
200 counts as endless. A block whose queries went out later than a tenth of the 99th percentile of their answers, or
not at all, is run again, and its round is left out, and made up for, if that does not help.

``--vary`` compares settings instead of policies: one MIX arm for each value, beside RAW and Q. For the models of a
card max-pass-ms takes along what follows from it there: filling to all of it, documents to twice. ``--vary
rate=5%,10%,20%`` compares loads on one server instead; Q stays at the rate of the run.

A peer is started by whoever compares with it, in an environment of its own, with the same weights; infinity, for
instance:
    infinity_emb v2 --engine torch --device cpu --dtype float32 --port 7997 --model-id FOLDER --served-model-name NAME
"""

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from urllib.parse import urlsplit

from app.devices import place_workers
from bench.arms import (
    DOCUMENTS,
    LANES,
    MIX,
    MIX_FIFO,
    MIX_LONG,
    MIX_SEED,
    NEVER_STORED,
    PEER,
    PEERS,
    QUERIES,
    SETUPS,
    Arm,
    Policy,
    QueryRate,
    Setup,
)
from bench.arrivals import Arrivals, arrivals, no_arrivals
from bench.client import REQUEST_TEXTS, Server
from bench.comparison import Block, Overload, Run, is_quotable, overload_of, ratios_of
from bench.corpora import has_long_documents, make_corpora
from bench.loads import longest_first, token_passes
from bench.openloop import Load, LoadGenerator, Log, Target
from bench.plot import latency_chart
from bench.raw import num_tokens_of, raw_tokens_per_s, spread_out
from bench.report import RESULTS, arguments, card, is_quiet, save, verdict
from bench.scrape import (
    Samples,
    cpu_seconds,
    histogram_p99,
    num_running_passes,
    pass_tokens,
    samples_of,
    scrape,
)
from bench.tables import as_json, curve_of, print_arms, print_overload, print_ratios
from bench.tails import (
    answered_tokens,
    answers_per_s,
    cores_of,
    count_statuses,
    header_values,
    punctuality,
    rates_of_drained,
    rates_of_passes,
)
from bench.vectors import Corpus, WrongVectorError
from model import Features, Preparer, find_checkpoint
from model.worker import LoadOptions, ProcessWorker

MODEL = "all-MiniLM-L6-v2"
"""What the gateways call whatever they serve: they are all started with the embedded checkpoint's tokenizer."""

RAW_PASS_TOKENS = (512, 1_024, 2_048, 4_096, 8_192, 16_384)
"""Tried for RAW, up to the setup's ``big_pass_tokens``."""
RAW_TRIES = 3
RAW_S = 2.5
"""Length of a block of the bare workers, of which there is one between each two arms."""
IDLE_POLL_S = 0.1
WARM_S = 1.5
DOCUMENTS_S = 6.0
"""Length of a block with documents alone."""
OVERLOAD_S = 8.0
OVERLOAD_FACTOR = 2.0
CAPACITY_CONCURRENCY = 16
"""Queries under way while their capacity is measured."""
OUTSTANDING_INPUTS = 512
MAX_EXTRA_ROUNDS = 2
"""For those that are left out: on a machine that is too busy for most of them more would be no better."""

PASS_TIME_OVER_PREDICTION = "laneway_pass_prediction_ratio"
LOOP_LAG = "laneway_event_loop_lag_seconds"
"""Histograms that are told where the gateway exports them."""


class Bench:
    """Owns everything that is running: the bare workers, the servers and the load generator."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        self._setup = setup
        self._options = options
        self._arms, self._policies = arms_of(setup, options)
        self._generator = LoadGenerator()
        self._servers: dict[str, Server] = {}
        self._workers: list[ProcessWorker] = []
        self.raw_pass_tokens = 0
        self.query_rate_per_s = 0.0
        self.query_capacity_per_s: float | None = None
        """Measured only where a rate is a part of it."""

    @property
    def arms(self) -> Sequence[Arm]:
        return self._arms

    # Life

    async def start(self) -> None:
        """Start the workers, compute what will be compared, then start the servers, one after the other."""
        setup = self._setup
        checkpoint = find_checkpoint("minilm")
        placement = place_workers(
            device=setup.device,
            dtype="auto",
            num_workers=setup.num_workers,
        )
        self._workers = [
            ProcessWorker(
                LoadOptions(
                    folder=str(checkpoint.folder),
                    source=checkpoint.name,
                    device=device,
                    dtype="auto",
                    num_threads=placement.threads_per_worker,
                ),
                loader=setup.loader,
            )
            for device in placement.devices
        ]
        infos = [await worker.start(lambda _stage: None) for worker in self._workers]
        self.corpora = await make_corpora(
            setup, Preparer(infos[0]), self._workers, num_texts=self._options.texts
        )
        self._passes = await self._fastest_passes()
        for policy in self._policies.values():
            server = Server(*setup.base_arguments, *policy.arguments(), program=setup.program)
            self._servers[policy.name] = server
            await server.seconds_until("/health/ready")
        await self._settle_query_rate()

    async def stop(self) -> None:
        """End everything."""
        for server in self._servers.values():
            server.stop()
        for worker in self._workers:
            await worker.stop()
        self._generator.close()

    async def _settle_query_rate(self) -> None:
        rate = self._options.rate or self._setup.query_rate
        if any(one and one.of_capacity for one in (rate, *(arm.query_rate for arm in self._arms))):
            self.query_capacity_per_s = await self._capacity_per_s(self.corpora.queries)
        self.query_rate_per_s = rate.per_second(self.query_capacity_per_s)

    async def _capacity_per_s(self, queries: Corpus) -> float:
        """How many of these queries a second are answered while nothing else is asked."""
        load = Load(
            target=self._target(self._policies[LANES]),
            queries=(),
            arrivals=no_arrivals(self._options.warm_s),
            # What is always under way is called documents there.
            documents=queries.bodies(self._fields(self._policies[LANES], "query")),
            num_document_requests=CAPACITY_CONCURRENCY,
            window_s=self._options.overload_s / 2,
        )
        log = await self._generator.run(load)
        self._check(log, queries=queries, documents=queries)
        capacity_per_s = answers_per_s(log)
        if capacity_per_s is None:
            raise SystemExit("no two queries were answered while their capacity was measured")
        return capacity_per_s

    async def _fastest_passes(self) -> list[list[Features]]:
        """Cut what RAW runs: all documents, in passes of the size that gives most."""
        documents = self.corpora.documents.features
        ordered = [documents[index] for index in longest_first(documents)]
        passes = {
            size: spread_out(token_passes(ordered, size))
            for size in RAW_PASS_TOKENS
            if size <= self._setup.big_pass_tokens
        }
        rates: dict[int, list[float]] = {size: [] for size in passes}
        # In turn, so that a slow moment of the machine meets different sizes.
        for _ in range(RAW_TRIES):
            for size in passes:
                rates[size].append(
                    await raw_tokens_per_s(self._workers, passes[size], seconds=self._options.raw_s)
                )
        self.raw_pass_tokens = max(rates, key=lambda size: median(rates[size]))
        return passes[self.raw_pass_tokens]

    # Rounds

    async def run_rounds(self) -> Run:
        """All arms in each round, there and back (ABBA), after a round of warming up.

        The bare workers run between each two of them, so that each arm is held against what the machine gave
        just then. A round that is left out is made up for, so that there are as many queries as were asked for.
        """
        run = Run()
        for policy in self._policies.values():
            await self._warm_up(policy)
        number = 0
        while number < self._options.rounds + min(run.num_invalid_rounds, MAX_EXTRA_ROUNDS):
            step = -1 if number % 2 else 1
            raw_per_s = [await self._raw_per_s()]
            blocks: dict[str, Block] = {}
            for arm in self._arms[::step]:
                blocks[arm.name] = await self._valid_block(arm, seed=self._options.seed + number)
                await self._until_idle(arm)
                raw_per_s.append(await self._raw_per_s())
            run.add(raw_per_s[::step], {arm.name: blocks[arm.name] for arm in self._arms})
            number += 1
            print(f"  {number} rounds done", file=sys.stderr, flush=True)
        return run

    async def _raw_per_s(self) -> float:
        return await raw_tokens_per_s(self._workers, self._passes, seconds=self._options.raw_s)

    async def _until_idle(self, arm: Arm) -> None:
        """Wait for passes whose requests were broken off: they are computed to the end, for nobody."""
        if arm.policy == PEER:
            return  # Its documents were waited for.
        async with asyncio.timeout(self._options.timeout_s):
            while await asyncio.to_thread(num_running_passes, self._servers[arm.policy].port):  # noqa: ASYNC110 - another process
                await asyncio.sleep(IDLE_POLL_S)

    async def _warm_up(self, policy: Policy) -> None:
        arm = Arm(name="warm-up", policy=policy.name, has_queries=True, has_documents=True)
        await self._block(arm, count=5, seed=0)
        await self._until_idle(arm)

    async def _valid_block(self, arm: Arm, *, seed: int) -> Block:
        """One block; a second try if the first was not sent on time."""
        count = math.ceil(self._options.queries / self._options.rounds)
        if arm.query_rate is not None:
            # A rate that is high sends its queries too soon for a block to tell its tokens a second.
            count = max(count, math.ceil(self._rate_per_s(arm) * self._options.documents_s))
        block = await self._block(arm, count=count, seed=seed)
        if block.is_valid:
            return block
        await self._until_idle(arm)
        return await self._block(arm, count=count, seed=seed)

    async def _block(self, arm: Arm, *, count: int, seed: int) -> Block:
        policy = self._policies.get(arm.policy) or Policy(name=PEER)
        queries = self.corpora.queries
        documents = self.corpora.documents
        # A peer is measured until its last document, and so are the arms that are compared with it.
        is_drained = policy.name == PEER or (bool(self._options.peer) and arm in PEERS)
        if arm.has_long_documents and self.corpora.long_documents is not None:
            documents = self.corpora.long_documents
        schedule = (
            self._query_arrivals(count, rate_per_s=self._rate_per_s(arm), seed=seed)
            if arm.has_queries
            else no_arrivals(self._options.warm_s)
        )
        load = Load(
            target=self._target(policy),
            queries=queries.bodies(self._fields(policy, "query")) if arm.has_queries else (),
            arrivals=schedule,
            documents=documents.bodies(self._fields(policy, "document")) if arm.has_documents else (),
            num_document_requests=OUTSTANDING_INPUTS // REQUEST_TEXTS if arm.has_documents else 0,
            # With queries it is they who say how long the block is, so that none of it is without them.
            window_s=0.0 if arm.has_queries else self._options.documents_s,
            timeout_s=self._options.timeout_s,
            reads_metrics=policy.name != PEER and arm.has_documents,
            drains_documents=is_drained,
        )
        before = await self._scrape(policy)
        log = await self._generator.run(load)
        after = await self._scrape(policy)
        self._check(log, queries=queries, documents=documents)
        rates = drained_rates = None
        if is_drained:
            drained_rates = rates_of_drained(
                log, document_tokens=documents.num_tokens, query_tokens=queries.num_tokens
            )
        if policy.name != PEER:
            check_count(log, pass_tokens(after) - pass_tokens(before), queries=queries, documents=documents)
            rates = rates_of_passes(
                log,
                count_tokens=lambda content: pass_tokens(samples_of(content.decode())),
                query_tokens=queries.num_tokens,
            )
        return Block(
            latencies_s=[one.latency_s for one in log.queries],
            queue_ms=header_values(log.queries, "x-queue-time-ms"),
            rates=rates,
            drained_rates=drained_rates,
            cores=cores_of(log, lambda content: cpu_seconds(samples_of(content.decode()))),
            statuses=count_statuses(log.queries),
            document_statuses=count_statuses(log.documents),
            punctuality=punctuality(log.queries) if log.queries else None,
            histograms={
                name: value
                for name in (PASS_TIME_OVER_PREDICTION, LOOP_LAG)
                if (value := histogram_p99(before, after, name)) is not None
            },
        )

    def _rate_per_s(self, arm: Arm) -> float:
        if arm.query_rate is None:
            return self.query_rate_per_s
        return arm.query_rate.per_second(self.query_capacity_per_s)

    def _query_arrivals(self, count: int, *, rate_per_s: float, seed: int) -> Arrivals:
        return arrivals(
            rate_per_s=rate_per_s,
            count=count,
            num_bodies=self.corpora.queries.num_requests,
            warm_s=self._options.warm_s,
            burstiness=self._options.burstiness,
            seed=seed,
        )

    def _target(self, policy: Policy) -> Target:
        if policy.name != PEER:
            return Target(port=self._servers[policy.name].port)
        address = urlsplit(str(self._options.peer))
        return Target(
            host=address.hostname or "127.0.0.1",
            port=address.port or 80,
            path=f"{address.path.rstrip('/')}/embeddings",
        )

    def _fields(self, policy: Policy, kind: str) -> dict[str, str]:
        if policy.name == PEER:
            return {"model": self._options.peer_model}
        one_lane = {"priority": "document"} if policy.is_one_lane else {}
        return {"model": MODEL, "input_type": kind, **one_lane}

    async def _scrape(self, policy: Policy) -> Samples:
        if policy.name == PEER:
            return {}
        return await asyncio.to_thread(scrape, self._servers[policy.name].port)

    def _check(self, log: Log, *, queries: Corpus, documents: Corpus) -> None:
        """Look at every vector that was answered. Ends the run at the first wrong one."""
        answers = (
            *((one, queries) for one in (*log.warm_queries, *log.queries, *log.retries)),
            *((one, documents) for one in log.documents),
        )
        for sent, corpus in answers:
            if sent.status == 200:
                try:
                    corpus.check(sent, min_cosine=self._setup.min_cosine)
                except WrongVectorError as error:
                    raise SystemExit(f"a wrong answer: {error}") from error

    # Overload

    async def run_overload(self) -> Overload:
        """Measure how many long queries a second are answered, then offer twice as many, among documents."""
        policy = self._policies[LANES]
        corpus, documents = self.corpora.overload, self.corpora.documents
        bodies = corpus.bodies(self._fields(policy, "query"))
        capacity_per_s = await self._capacity_per_s(corpus)
        offered_per_s = OVERLOAD_FACTOR * capacity_per_s
        load = Load(
            target=self._target(policy),
            queries=bodies,
            arrivals=arrivals(
                rate_per_s=offered_per_s,
                count=math.ceil(offered_per_s * self._options.overload_s),
                num_bodies=len(bodies),
                warm_s=self._options.warm_s,
                seed=self._options.seed,
            ),
            documents=documents.bodies(self._fields(policy, "document")),
            num_document_requests=OUTSTANDING_INPUTS // REQUEST_TEXTS,
            timeout_s=self._options.timeout_s,
            reads_metrics=True,
            retries_refused=True,
        )
        log = await self._generator.run(load)
        self._check(log, queries=corpus, documents=documents)
        return overload_of(log, capacity_per_s=capacity_per_s, offered_per_s=offered_per_s)


def check_count(log: Log, num_counted: float, *, queries: Corpus, documents: Corpus) -> None:
    """Hold what the gateway counted in a block against what it answered.

    It computed what it answered, and beyond that at most what was under way when the documents were broken off.
    Ends the run otherwise, for the rates are taken from its count.
    """
    queried = answered_tokens([*log.warm_queries, *log.queries], queries.num_tokens)
    num_answered = queried + answered_tokens(log.documents, documents.num_tokens)
    largest = max(documents.num_tokens(body) for body in range(documents.num_requests))
    most = num_answered + largest * 2 * OUTSTANDING_INPUTS // REQUEST_TEXTS
    if not num_answered <= num_counted <= most:
        raise SystemExit(
            f"the gateway counted {num_counted:,.0f} tokens in its passes and answered {num_answered:,}"
        )


def arms_of(setup: Setup, options: argparse.Namespace) -> tuple[list[Arm], dict[str, Policy]]:
    """What is compared, and the servers that it takes."""
    policies = setup.policies()
    if options.vary:
        name, values = options.vary
        if name == "rate":
            loads = [
                Arm(
                    name=f"rate={value}",
                    policy=LANES,
                    has_queries=True,
                    has_documents=True,
                    query_rate=QueryRate.parse(value),
                )
                for value in values
            ]
            return [QUERIES, *loads], {LANES: policies[LANES]}
        varied = [setup.varied(name, value) for value in values]
        arms = [
            QUERIES,
            *(
                Arm(name=policy.name, policy=policy.name, has_queries=True, has_documents=True)
                for policy in varied
            ),
        ]
        return arms, {LANES: policies[LANES], **{policy.name: policy for policy in varied}}
    arms = [DOCUMENTS, QUERIES, MIX]
    if has_long_documents(setup):
        arms.append(MIX_LONG)
    arms += [MIX_FIFO, MIX_SEED]
    if options.peer:
        arms += PEERS.values()
    return arms, policies


def save_charts(run: Run, arms: Sequence[Arm], options: argparse.Namespace, name: str) -> None:
    latencies_s = {
        arm.name: run.all_latencies_s(arm.name)
        for arm in arms
        if arm.has_queries and not all(map(math.isinf, run.all_latencies_s(arm.name)))
    }
    title = f"A query's latency, {options.engine}, by what runs beside it"
    (RESULTS / f"{name}.svg").write_text(latency_chart(title, latencies_s))
    if options.vary and (curve := curve_of(run, *options.vary)):
        (RESULTS / f"{name}-curve.svg").write_text(curve)


async def measure(options: argparse.Namespace) -> None:
    setup = SETUPS[options.engine]
    if options.device:
        setup = replace(setup, device=options.device)
    bench = Bench(setup, options)
    try:
        await bench.start()
        tokens = num_tokens_of([bench.corpora.documents.features])
        print(
            f"{setup.name}: {options.texts} documents of {tokens / options.texts:.0f} tokens on average, "
            f"{OUTSTANDING_INPUTS} of them always waiting; {bench.query_rate_per_s:.3g} queries/s; "
            f"RAW in passes of {bench.raw_pass_tokens} tokens"
        )
        run = await bench.run_rounds()
        overload = None if options.vary or options.no_overload else await bench.run_overload()
    finally:
        await bench.stop()
    report(setup, options, bench, run, overload)


def report(
    setup: Setup, options: argparse.Namespace, bench: Bench, run: Run, overload: Overload | None
) -> None:
    if not run.raw_per_s:
        raise SystemExit("no round was sent on time: this machine is too busy to measure anything")
    control, ratios = run.control(), ratios_of(run, bench.arms)
    print_arms(run, bench.arms)
    said = (
        "quiet" if is_quotable(control) else "TOO NOISY to quote" if is_quiet(control) else verdict(control)
    )
    print(f"  {'control (RAW over itself)':<40} {control}: {said}")
    print_ratios(ratios)
    if overload is not None:
        print_overload(overload)
    if run.num_invalid_rounds:
        print(f"  {run.num_invalid_rounds} rounds left out: their queries were not sent on time")
    if overload is not None and not overload.is_every_request_answered:
        raise SystemExit(
            "not stored: under overload a request was neither answered with vectors nor with 429"
        )
    if not is_quotable(control) or setup.name in NEVER_STORED:
        why = said if not is_quotable(control) else "this engine only shows that the benchmark runs"
        print(f"not stored: {why}")
        return
    name = f"lanes-{setup.name}-{setup.device.partition(':')[0]}"
    if options.vary:
        name += f"-{options.vary[0]}"
    load = {
        "documents": options.texts,
        "outstanding_inputs": OUTSTANDING_INPUTS,
        "queries_per_s": round(bench.query_rate_per_s, 2),
        "query_capacity_per_s": bench.query_capacity_per_s and round(bench.query_capacity_per_s, 1),
        "burstiness": options.burstiness,
        "seed": options.seed,
        "raw_pass_tokens": bench.raw_pass_tokens,
        "peer": options.peer_model if options.peer else None,
    }
    save(
        name,
        control,
        {"card": card(), "model": setup.name, "load": load, **as_json(run, bench.arms, ratios, overload)},
    )
    save_charts(run, bench.arms, options, name)


def varied(text: str) -> tuple[str, tuple[str, ...]]:
    """``max-pass-ms=25,50`` as a name and its values."""
    name, equals, values = text.partition("=")
    name = name.removeprefix("--")
    if not (name and equals and all(values.split(","))):
        raise argparse.ArgumentTypeError("give a setting and its values: max-pass-ms=25,50")
    if name == "rate":
        try:
            for value in values.split(","):
                QueryRate.parse(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return name, tuple(values.split(","))


def parser() -> argparse.ArgumentParser:
    parser = arguments(__doc__, rounds=6, texts=512)
    parser.add_argument("--engine", choices=SETUPS, default="minilm")
    parser.add_argument("--device", help="such as cuda:1; default: what suits the engine")
    parser.add_argument("--queries", type=int, default=1_100, help="of each arm, over all rounds")
    parser.add_argument(
        "--rate",
        type=QueryRate.parse,
        help="queries a second, or 10%%: of the capacity; default: the engine's",
    )
    parser.add_argument(
        "--burstiness", type=float, default=1.0, help="of the gaps: 1 is Poisson, 2 to 3 bursts"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--timeout-s", type=float, default=60.0, help="a query not answered by then is missed"
    )
    parser.add_argument("--raw-s", type=float, default=RAW_S, help="length of a block of the bare workers")
    parser.add_argument("--warm-s", type=float, default=WARM_S, help="of each block, not counted")
    parser.add_argument(
        "--documents-s", type=float, default=DOCUMENTS_S, help="length of a block without queries"
    )
    parser.add_argument("--overload-s", type=float, default=OVERLOAD_S)
    parser.add_argument("--no-overload", action="store_true")
    parser.add_argument("--vary", type=varied, metavar="SETTING=VALUES")
    parser.add_argument("--peer", help="base URL of another server, as an OpenAI client takes it")
    parser.add_argument("--peer-model", default=MODEL)
    return parser


def main() -> None:
    options = parser().parse_args()
    # Whatever is imported here uses one thread: the cores belong to those who are measured.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asyncio.run(measure(options))


if __name__ == "__main__":
    main()

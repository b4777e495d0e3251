"""What it costs that a pass can be interrupted, and what a query gains by it.

    python -m bench.interruption [--rounds 7] [--texts 20] [--threads 1] [--device cpu] [--model minilm]

On CPU, in the process of an encoder:
  bare          passes of 10, 450 and 2,000 tokens without hooks between the blocks
  looking       the same with hooks that look at two idle sockets, as a worker's do
  bare again    the control
and through a worker process that is kept full of documents (a pass of 2,000 tokens that runs, one behind it):
  boundary      queries that wait for the end of the pass that runs
  interrupting  queries that run between two of its blocks
  alone         queries to an idle worker
  alone again   the control of these
``--texts`` is how many queries each of these gets in a round; they come at random moments.

On CUDA (never run so far): passes of 8,192 tokens, with 1, 2 and 4 blocks launched ahead and without a limit; how much
longer they take, and what a query waits for its vector when it comes at a random moment.
"""

import argparse
import asyncio
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch

from bench.report import Ratio, arguments, averaged, card, is_quiet, paired_ratio, save, spread, verdict
from model import Features, find_checkpoint
from model.blocks import BlockWatch
from model.encoder import TransformerEncoder
from model.interruption import Safepoints
from model.loading import load_encoder
from model.worker import LoadOptions, ProcessWorker
from model.worker.mailbox import Mailbox
from model.worker.passes import run_pass

QUERY_TOKENS = 10
DOCUMENT_TOKENS = 2_000
CUDA_DOCUMENT_TOKENS = 8_192
BLOCKS_AHEAD = {"1": 1, "2": 2, "4": 4, "inf": None}
REPEATS = {QUERY_TOKENS: 100, 450: 8, DOCUMENT_TOKENS: 3}
"""Passes that are timed together, so that each arm of a round takes about a second."""


def pass_of(num_tokens: int, longest: int) -> list[Features]:
    """Random token ids in inputs as long as the model reads, and one for the rest."""
    ids = np.random.default_rng(0).integers(1_000, 2_000, num_tokens).astype(np.int32)
    return [Features(token_ids=ids[start : start + longest]) for start in range(0, num_tokens, longest)]


# What looking costs


def time_hooks(options: argparse.Namespace) -> tuple[Ratio, dict[str, Ratio]]:
    """Ratios of CPU time: the control over all passes together, and looking over bare for each size."""
    torch.set_num_threads(options.threads)
    encoder = load_encoder(load_options(options), lambda _stage: None)
    backbone = encoder._layers.backbone
    backbone.block_watch.remove()
    sockets = [*socket.socketpair(), *socket.socketpair()]
    mailbox = Mailbox(sockets[0], sockets[2])
    points = Safepoints(on_safepoint=mailbox.look)
    bare_s: dict[int, list[float]] = {size: [] for size in REPEATS}
    looking_s: dict[int, list[float]] = {size: [] for size in REPEATS}
    again_s: dict[int, list[float]] = {size: [] for size in REPEATS}
    for number in range(options.rounds + 1):
        for size in REPEATS:
            features = pass_of(size, encoder.info.max_tokens)

            def work(points: Safepoints | None, features: Sequence[Features] = features) -> None:
                run_pass(encoder, features, points=points)

            times = alternated(work, points, REPEATS[size], lambda: watch(backbone))
            if number:  # the first round warms up
                for arm, elapsed_s in zip((bare_s, looking_s, again_s), times, strict=True):
                    arm[size].append(elapsed_s)
    for one in sockets:
        one.close()
    control = paired_ratio(
        [sum(times) for times in zip(*again_s.values(), strict=True)],
        [sum(times) for times in zip(*bare_s.values(), strict=True)],
    )
    return control, {
        f"looking over bare, {size} tokens": paired_ratio(
            looking_s[size], averaged(bare_s[size], again_s[size])
        )
        for size in REPEATS
    }


def alternated(
    work: Callable[[Safepoints | None], None],
    points: Safepoints,
    repeats: int,
    watch_blocks: Callable[[], BlockWatch],
) -> tuple[float, float, float]:
    """CPU seconds of the three arms, one after the other."""
    bare_s = cpu_seconds(lambda: work(None), repeats)
    watch = watch_blocks()
    looking_s = cpu_seconds(lambda: work(points), repeats)
    watch.remove()
    return bare_s, looking_s, cpu_seconds(lambda: work(None), repeats)


def watch(backbone: object) -> BlockWatch:
    return BlockWatch(backbone._transformer, backbone.device)


def cpu_seconds(work: Callable[[], None], repeats: int) -> float:
    work()  # what changed between two arms is not to be paid by the first pass after it
    started_s = time.process_time()
    for _ in range(repeats):
        work()
    return time.process_time() - started_s


# What a query waits


@dataclass
class Reactions:
    """What one arm saw, round by round."""

    query_ms: list[list[float]] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)

    def medians(self) -> list[float]:
        return [median(one) for one in self.query_ms]

    def all_ms(self) -> list[float]:
        return [ms for one in self.query_ms for ms in one]


async def time_reactions(options: argparse.Namespace) -> dict[str, Reactions]:
    worker = ProcessWorker(load_options(options))
    info = await worker.start(lambda _stage: None)
    query = pass_of(QUERY_TOKENS, info.max_tokens)
    document = pass_of(DOCUMENT_TOKENS, info.max_tokens)
    document_s = (await worker.run(document)).device_s
    arms = {name: Reactions() for name in ("alone", "boundary", "interrupting", "alone again")}
    for number in range(options.rounds + 1):
        for name, arm in arms.items():
            gaps = random.Random(number)
            flood = Flood(worker, [] if name.startswith("alone") else document)
            times: list[float] = []
            started_s = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                flood.start(group)
                for _ in range(options.texts):
                    await asyncio.sleep(gaps.uniform(0.2, 1.2) * document_s)
                    sent_s = time.perf_counter()
                    await worker.run(query, is_urgent=True, may_interrupt=name == "interrupting")
                    times.append((time.perf_counter() - sent_s) * 1e3)
                flood.is_over = True
            if number:
                arm.query_ms.append(times)
                num_tokens = flood.num_done * DOCUMENT_TOKENS + options.texts * QUERY_TOKENS
                arm.tokens_per_s.append(num_tokens / (time.perf_counter() - started_s))
    await worker.stop()
    return arms


class Flood:
    """Keeps one pass of documents running and one behind it, until it is over; without documents, none."""

    def __init__(self, worker: ProcessWorker, document: Sequence[Features]) -> None:
        self._worker = worker
        self._document = document
        self.is_over = not document
        self.num_done = 0

    def start(self, group: asyncio.TaskGroup) -> None:
        for _ in range(2):
            group.create_task(self._run())

    async def _run(self) -> None:
        while not self.is_over:
            await self._worker.run(self._document)
            self.num_done += 1


# CUDA


def time_launch_ahead(options: argparse.Namespace) -> tuple[Ratio, dict[str, object]]:
    """Cost and reaction for each number of blocks launched ahead."""
    encoder = load_encoder(load_options(options), lambda _stage: None)
    document = pass_of(CUDA_DOCUMENT_TOKENS, encoder.info.max_tokens)
    query = pass_of(QUERY_TOKENS, encoder.info.max_tokens)
    undisturbed = encoder.encode(document)
    bare_s: list[float] = []
    again_s: list[float] = []
    limited_s: dict[str, list[float]] = {name: [] for name in BLOCKS_AHEAD}
    reaction_ms: dict[str, list[float]] = {name: [] for name in BLOCKS_AHEAD}
    for number in range(options.rounds + 1):
        gaps = random.Random(number)
        first_s = run_pass(encoder, document).device_s
        times: dict[str, float] = {}
        reactions: dict[str, float] = {}
        for name, ahead in BLOCKS_AHEAD.items():
            points = Safepoints(on_safepoint=lambda: None, max_blocks_ahead=ahead)
            times[name] = run_pass(encoder, document, points=points).device_s
            come_s = gaps.uniform(0.1, 0.8) * first_s
            rows, reactions[name] = run_interrupted(encoder, document, query, ahead, come_s)
            if not np.array_equal(rows, undisturbed):
                raise SystemExit(f"an interrupted pass gave other vectors ({name} blocks ahead)")
        last_s = run_pass(encoder, document).device_s
        if number:
            bare_s.append(first_s)
            again_s.append(last_s)
            for name in BLOCKS_AHEAD:
                limited_s[name].append(times[name])
                reaction_ms[name].append(reactions[name])
    base_s = averaged(bare_s, again_s)
    results: dict[str, object] = {}
    for name in BLOCKS_AHEAD:
        results[f"{name} blocks ahead: time over bare"] = paired_ratio(limited_s[name], base_s)
        results[f"{name} blocks ahead: query"] = spread(reaction_ms[name])
    return paired_ratio(again_s, bare_s), results


def run_interrupted(
    encoder: TransformerEncoder,
    document: Sequence[Features],
    query: Sequence[Features],
    max_blocks_ahead: int | None,
    come_s: float,
) -> tuple[np.ndarray, float]:
    """A pass in which a query comes after so long; its rows, and milliseconds from there to the query's rows."""
    came_s: list[float] = []
    done_s: list[float] = []

    def answer_query() -> None:
        if came_s and not done_s:
            run_pass(encoder, query)
            done_s.append(time.perf_counter())

    timer = threading.Timer(come_s, lambda: came_s.append(time.perf_counter()))
    timer.start()
    points = Safepoints(on_safepoint=answer_query, max_blocks_ahead=max_blocks_ahead)
    rows = run_pass(encoder, document, points=points).rows
    timer.join()
    answer_query()  # where the launching thread was past the last block
    return rows, (done_s[0] - came_s[0]) * 1e3


def load_options(options: argparse.Namespace) -> LoadOptions:
    checkpoint = find_checkpoint(options.model)
    return LoadOptions(
        folder=str(checkpoint.folder),
        source=checkpoint.name,
        device=options.device,
        dtype=options.dtype,
        num_threads=options.threads,
    )


def main() -> None:
    parser = arguments(__doc__, rounds=7, texts=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default="minilm")
    options = parser.parse_args()
    results: dict[str, object]
    if options.device.startswith("cuda"):
        control, results = time_launch_ahead(options)
    else:
        control, costs = time_hooks(options)
        arms = asyncio.run(time_reactions(options))
        if is_quiet(control):  # of the two, the one that speaks against the run
            control = paired_ratio(arms["alone again"].medians(), arms["alone"].medians())
        results = {
            **costs,
            **{f"query, {name}": spread(arm.all_ms()) for name, arm in arms.items()},
            "query, boundary over interrupting": paired_ratio(
                arms["boundary"].medians(), arms["interrupting"].medians()
            ),
            "query, interrupting over alone": paired_ratio(
                arms["interrupting"].medians(), arms["alone"].medians()
            ),
            "all tokens per second, interrupting over boundary": paired_ratio(
                arms["interrupting"].tokens_per_s, arms["boundary"].tokens_per_s
            ),
        }
    print(f"{options.model} on {options.device}, {options.threads} threads, {options.dtype}")
    print(f"  control (an arm over itself)                        {control}: {verdict(control)}")
    for name, result in results.items():
        print(f"  {name:<51} {result}")
    save(
        f"interruption-{options.device.partition(':')[0]}-{options.dtype}",
        control,
        {
            "card": card(),
            "model": options.model,
            "load": {
                "query_tokens": QUERY_TOKENS,
                "document_tokens": DOCUMENT_TOKENS,
                "queries": options.texts,
            },
            **results,
        },
    )


if __name__ == "__main__":
    main()

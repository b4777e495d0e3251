"""Packed passes against padded ones, on the same texts, weights and threads, in one run.

    python -m bench.packing [--rounds 5] [--texts 256] [--threads 1] [--device cpu] [--dtype float32] [--model minilm]

Arms, in turn within each round:
  prepare               our tokenising and cutting of passes, taken by itself
  packed                passes as large as the server's (512 tokens on CPU), as the texts come, with linear layers
                        prepacked as the server has them (small models on CPU; elsewhere they are plain)
  packed, plain layers  the same with torch's own linear layers: what packing alone gives
  encode                SentenceTransformer.encode(batch_size=32), which tokenises, sorts and pads by itself
  sorted padded         sentence-transformers' forward on batches of 32, sorted by length, padded to the longest
  padded                the same on batches as the texts come
  packed again          the control: its ratio to the first must be near 1

Padded arms get their token ids ready made, as packed ones do. Only `encode` tokenises inside its clock; so
what is compared with it is `prepare` and the packed arm of the same round together.

The padded layers are plain ones. So only "packed, plain layers" differs from a padded arm in nothing but the
padding and attention; "packed" is what a user of the server gets, and owes a part to the layers.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from bench.loads import features_of, lognormal_texts, longest_first, pass_tokens_of, token_passes
from bench.report import Ratio, arguments, averaged, card, paired_ratio, save, verdict
from model import Features, ModelInfo, Preparer, find_checkpoint
from model.encoder import TransformerEncoder
from model.loading import load_encoder
from model.worker import LoadOptions

Timed = TypeVar("Timed")

BATCH_SIZE = 32

PREPARE = "prepare"
PACKED, PACKED_AGAIN, PLAIN = "packed", "packed again", "packed, plain layers"
ENCODE, SORTED_PADDED, PADDED = "encode", "sorted padded", "padded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Everything loaded, once: what the arms work on and with."""

    texts: Sequence[str]
    num_tokens: int
    info: ModelInfo
    prepare: Callable[[], object]
    arms: Mapping[str, Callable[[], np.ndarray]]
    """Each gives the vectors of all texts, ``[N, D]``, in their order."""
    tolerance: float


def load(options: argparse.Namespace) -> Bench:
    checkpoint = find_checkpoint(options.model)
    prepacked = LoadOptions(
        folder=str(checkpoint.folder),
        source=checkpoint.name,
        device=options.device,
        dtype=options.dtype,
        num_threads=options.threads,
    )
    encoder = load_encoder(prepacked, lambda _stage: None)
    plain_encoder = load_encoder(replace(prepacked, max_prepacked_bytes=0), lambda _stage: None)
    reference = SentenceTransformer(
        str(checkpoint.folder), device=options.device, model_kwargs={"dtype": getattr(torch, options.dtype)}
    )
    preparer = Preparer(encoder.info)
    texts = lognormal_texts(options.texts)
    features = features_of(preparer, texts)
    max_pass_tokens = pass_tokens_of(options.device)
    passes = token_passes(features, max_pass_tokens)
    return Bench(
        texts=texts,
        num_tokens=sum(one.num_tokens for one in features),
        info=encoder.info,
        prepare=lambda: token_passes(features_of(preparer, texts), max_pass_tokens),
        arms={
            PACKED: lambda: packed_rows(encoder, passes),
            PLAIN: lambda: packed_rows(plain_encoder, passes),
            ENCODE: lambda: reference.encode(texts, batch_size=BATCH_SIZE),
            SORTED_PADDED: lambda: padded_rows(reference, features, longest_first(features)),
            PADDED: lambda: padded_rows(reference, features, range(len(features))),
            PACKED_AGAIN: lambda: packed_rows(encoder, passes),
        },
        tolerance=1e-5 if options.dtype == "float32" else 2e-2,
    )


def packed_rows(encoder: TransformerEncoder, passes: Sequence[Sequence[Features]]) -> np.ndarray:
    return np.concatenate([encoder.encode(one) for one in passes])


def padded_rows(
    reference: SentenceTransformer, features: Sequence[Features], order: Sequence[int]
) -> np.ndarray:
    """sentence-transformers' own forward on batches of 32 in the given order, padded to their longest."""
    rows: list[np.ndarray] = [np.empty(0)] * len(features)
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        longest = max(features[index].num_tokens for index in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, : features[index].num_tokens] = torch.from_numpy(features[index].token_ids)
            mask[row, : features[index].num_tokens] = 1
        with torch.inference_mode():
            output = reference(
                {"input_ids": ids.to(reference.device), "attention_mask": mask.to(reference.device)}
            )
        for index, row in zip(batch, output["sentence_embedding"].float().cpu().numpy(), strict=True):
            rows[index] = row
    return np.stack(rows)


def run_rounds(bench: Bench, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round; a round before the first warms up."""
    expected = bench.arms[ENCODE]()
    seconds: dict[str, list[float]] = {name: [] for name in (PREPARE, *bench.arms)}
    for number in range(num_rounds + 1):
        times = {PREPARE: timed(bench.prepare)[0]}
        for name, arm in bench.arms.items():
            if number == 0 and name == ENCODE:
                continue  # warm by now
            times[name], rows = timed(arm)
            difference = float(np.abs(rows - expected).max())
            if not difference <= bench.tolerance:
                raise SystemExit(f"{name} is off by {difference:.1e}; a fast wrong vector is worth nothing")
        if number:
            for name, elapsed_s in times.items():
                seconds[name].append(elapsed_s)
    return seconds


def timed(work: Callable[[], Timed]) -> tuple[float, Timed]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def throughput_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, Ratio]:
    """Time of theirs over time of ours: throughput of ours over throughput of theirs."""
    ours = {PACKED: averaged(seconds[PACKED], seconds[PACKED_AGAIN]), PLAIN: seconds[PLAIN]}
    ratios: dict[str, Ratio] = {}
    for name, packed_s in ours.items():
        from_text_s = [a + b for a, b in zip(seconds[PREPARE], packed_s, strict=True)]
        ratios[f"{name} over {PADDED}"] = paired_ratio(seconds[PADDED], packed_s)
        ratios[f"{name} over {SORTED_PADDED}"] = paired_ratio(seconds[SORTED_PADDED], packed_s)
        ratios[f"{PREPARE} + {name} over {ENCODE}"] = paired_ratio(seconds[ENCODE], from_text_s)
    ratios[f"{PACKED} over {PLAIN}"] = paired_ratio(ours[PLAIN], ours[PACKED])
    return ratios


def main() -> None:
    parser = arguments(__doc__, rounds=5, texts=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default="minilm")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = load(options)
    seconds = run_rounds(bench, options.rounds)

    control = paired_ratio(seconds[PACKED_AGAIN], seconds[PACKED])
    ratios = throughput_ratios(seconds)
    num_texts = len(bench.texts)
    print(f"{num_texts} texts, {bench.num_tokens} tokens, {options.threads} threads, {options.dtype}")
    for name, times in seconds.items():
        middle_s = float(np.median(times))
        print(
            f"  {name:<20} {num_texts / middle_s:9.1f} texts/s  {bench.num_tokens / middle_s:10.0f} tokens/s"
        )
    print(f"  control (packed over itself)                   {control}: {verdict(control)}")
    for name, ratio in ratios.items():
        print(f"  {name:<46} {ratio}")
    save(
        f"packing-{options.device.partition(':')[0]}-{options.dtype}",
        control,
        {
            "card": card(),
            "model": bench.info.source,
            "packing": bench.info.packing_note,
            "load": {"texts": num_texts, "tokens": bench.num_tokens, "threads": options.threads},
            "throughput_ratios": ratios,
        },
    )


if __name__ == "__main__":
    main()

"""Packed passes against padded ones, on the same texts, weights and threads, in one run.

    python -m bench.packing [--rounds 7] [--threads 1] [--device cpu] [--dtype float32] [--model minilm]

Arms, in turn within each round:
  packed          passes of at most 512 tokens, as the texts come
  packed again    the control: its ratio to the first must be near 1
  padded          batches of 32 as the texts come, each padded to its longest
  sorted padded   the same after sorting all texts by length
  encode          SentenceTransformer.encode(batch_size=32), which sorts and pads by itself
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from bench.report import Ratio, card, is_quiet, lognormal_texts, paired_ratio, save, verdict
from model import EmbeddingInput, Features, Preparer, find_checkpoint
from model.loading import load_encoder
from model.worker import LoadOptions

NUM_TEXTS = 256
BATCH_SIZE = 32
PASS_TOKENS = {"cpu": 512, "cuda": 8192}


def token_passes(features: Sequence[Features], max_tokens: int) -> list[list[Features]]:
    """Cut into passes of at most so many tokens, in the order given."""
    passes: list[list[Features]] = [[]]
    for one in features:
        if passes[-1] and sum(f.num_tokens for f in passes[-1]) + one.num_tokens > max_tokens:
            passes.append([])
        passes[-1].append(one)
    return passes


def padded_encode(
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default="minilm")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    checkpoint = find_checkpoint(options.model)
    load = LoadOptions(
        folder=str(checkpoint.folder), source=checkpoint.name, device=options.device, dtype=options.dtype
    )
    encoder = load_encoder(load, lambda _stage: None)
    reference = SentenceTransformer(
        str(checkpoint.folder), device=options.device, model_kwargs={"dtype": getattr(torch, options.dtype)}
    )
    texts = lognormal_texts(NUM_TEXTS)
    features = [
        f
        for f in Preparer(encoder.info).prepare([EmbeddingInput(text=t) for t in texts])
        if isinstance(f, Features)
    ]
    as_they_come = list(range(len(features)))
    by_length = sorted(as_they_come, key=lambda index: features[index].num_tokens)
    passes = token_passes(features, PASS_TOKENS[options.device.partition(":")[0]])

    arms: dict[str, Callable[[], np.ndarray]] = {
        "packed": lambda: np.concatenate([encoder.encode(one) for one in passes]),
        "packed again": lambda: np.concatenate([encoder.encode(one) for one in passes]),
        "padded": lambda: padded_encode(reference, features, as_they_come),
        "sorted padded": lambda: padded_encode(reference, features, by_length),
        "encode": lambda: reference.encode(texts, batch_size=BATCH_SIZE),
    }
    expected = reference.encode(texts)
    tolerance = 1e-5 if options.dtype == "float32" else 2e-2
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(options.rounds + 1):
        for name, arm in arms.items():
            started = time.perf_counter()
            rows = arm()
            elapsed = time.perf_counter() - started
            difference = float(np.abs(rows - expected).max())
            if difference > tolerance:
                raise SystemExit(f"{name} is off by {difference:.1e}; a fast wrong vector is worth nothing")
            if round_number:  # the first round warms up
                seconds[name].append(elapsed)

    num_tokens = sum(f.num_tokens for f in features)
    control = paired_ratio(seconds["packed again"], seconds["packed"])
    ratios: dict[str, Ratio] = {
        f"packed over {name}": paired_ratio(seconds[name], seconds["packed"])
        for name in ("padded", "sorted padded", "encode")
    }
    print(f"{len(texts)} texts, {num_tokens} tokens, {options.threads} threads; {options.dtype}")
    for name, times in seconds.items():
        middle_s = float(np.median(times))
        print(f"  {name:<14} {len(texts) / middle_s:7.1f} texts/s  {num_tokens / middle_s:8.0f} tokens/s")
    print(f"  control (packed over itself) {control}: {verdict(control)}")
    for name, ratio in ratios.items():
        print(f"  {name:<28} {ratio}")
    path = save(
        f"packing-{options.device.partition(':')[0]}-{options.dtype}",
        {
            "card": card(),
            "model": encoder.info.source,
            "packing": encoder.info.packing_note,
            "load": {"texts": len(texts), "tokens": num_tokens, "threads": options.threads},
            "is_quiet": is_quiet(control),
            "control": control,
            "throughput_ratios": ratios,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()

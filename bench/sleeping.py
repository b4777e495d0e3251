"""A model that only takes the time that a real one would: a 7B model's card where there is none.

The process that "computes" sleeps, layer by layer, without the interpreter lock, as one that waits for a GPU. All
around it is real: the gateway, its scheduler, the worker process, HTTP. Rows are drawn from the token ids, so a
row that went to the wrong request is found out.

The times are those of a 7B-class model on one H100-class card: 33,000 tokens a second, and under some 660 tokens
(or 200, with CUDA graphs) nothing but launching its kernels.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model import Features, ModelInfo
from model.interruption import current_safepoints
from model.worker import LoadOptions, OnStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a pass takes: ``max(floor_s, tokens * per_token_s) + squared lengths * per_squared_token_s``."""

    floor_s: float
    per_token_s: float
    per_squared_token_s: float
    num_layers: int

    def pass_s(self, lengths: Sequence[int]) -> float:
        """Seconds of a pass of inputs of these lengths."""
        squared = sum(length * length for length in lengths)
        return max(self.floor_s, sum(lengths) * self.per_token_s) + squared * self.per_squared_token_s


# Attention of 28 layers of width 3,584 is 4 * 3,584 * 28 operations a pair of tokens, half of the pairs are masked,
# and the card does 430 TFLOP/s when it does 33,000 tokens of 13 GFLOP.
EAGER_7B = Timing(floor_s=0.020, per_token_s=1 / 33_000, per_squared_token_s=4.7e-10, num_layers=28)
GRAPHS_7B = Timing(floor_s=0.006, per_token_s=1 / 33_000, per_squared_token_s=4.7e-10, num_layers=28)
QUICK = Timing(floor_s=0.001, per_token_s=1 / 200_000, per_squared_token_s=0.0, num_layers=4)
"""For tests of the harness."""

DIMENSION_7B = 3_584
MAX_TOKENS = 8_192


class SleepingEncoder:
    """Takes a pass's time and gives rows that depend on the tokens alone."""

    def __init__(
        self,
        info: ModelInfo,
        timing: Timing,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.info = info
        self._timing = timing
        self._sleep = sleep
        self._clock = clock

    def encode(self, features: Sequence[Features]) -> npt.NDArray[np.float32]:
        """Run one pass: ``[B, D]``."""
        done_s = self._clock()
        layer_s = self._timing.pass_s([one.num_tokens for one in features]) / self._timing.num_layers
        # A real host has time for this, too, while its device computes.
        rows_BD = np.stack([row_of(one.token_ids, self.info.dimension) for one in features])
        for _ in range(self._timing.num_layers):
            done_s += self._let_others_run() + layer_s
            # Until a moment, not for a while: what the kernel sleeps too long is made good in the next layer.
            self._sleep(max(0.0, done_s - self._clock()))
        return rows_BD

    def num_padding_tokens(self, features: Sequence[Features]) -> int:
        return 0

    def _let_others_run(self) -> float:
        """Stop before a layer, where an urgent pass may run; returns the seconds that it took."""
        points = current_safepoints()
        if points is None:
            return 0.0
        started_s = self._clock()
        points.on_safepoint()
        return self._clock() - started_s


def row_of(token_ids: npt.NDArray[np.int32], dimension: int) -> npt.NDArray[np.float32]:
    """A unit vector, another one for other tokens, and the same in every process."""
    digest = hashlib.blake2b(np.ascontiguousarray(token_ids, dtype="<i4").tobytes(), digest_size=8).digest()
    random = np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))
    row_D = random.standard_normal(dimension, dtype=np.float32)
    return row_D / np.float32(np.linalg.norm(row_D))


def load_eager_7b(options: LoadOptions, on_stage: OnStage) -> SleepingEncoder:
    """A 7B model whose kernels Python launches one by one."""
    return _load(options, on_stage, EAGER_7B, "sleeping 7B, eager", DIMENSION_7B)


def load_graphs_7b(options: LoadOptions, on_stage: OnStage) -> SleepingEncoder:
    """A 7B model whose small passes are CUDA graphs."""
    return _load(options, on_stage, GRAPHS_7B, "sleeping 7B, CUDA graphs", DIMENSION_7B)


def load_quick(options: LoadOptions, on_stage: OnStage) -> SleepingEncoder:
    """A small model, for tests."""
    return _load(options, on_stage, QUICK, "sleeping, quick", 32)


def _load(
    options: LoadOptions, on_stage: OnStage, timing: Timing, name: str, dimension: int
) -> SleepingEncoder:
    on_stage("falling asleep")
    return SleepingEncoder(sleeping_info(options, name=name, dimension=dimension), timing)


def sleeping_info(options: LoadOptions, *, name: str, dimension: int) -> ModelInfo:
    """A model that tokenises as the checkpoint in the folder does, and is nothing else of it."""
    return ModelInfo(
        source=options.source,
        family="sleeping",
        architecture=name,
        dimension=dimension,
        max_tokens=min(MAX_TOKENS, options.max_tokens or MAX_TOKENS),
        vocab_size=30_522,
        num_parameters=0,
        dtype="float32",
        device=options.device,
        pooling="none",
        is_normalized=True,
        is_packed=True,
        packing_note="nothing is computed",
        prompts={},
        default_prompt_name=None,
        include_prompt=True,
        matryoshka_dimensions=(),
        tokenizer_json=(Path(options.folder) / "tokenizer.json").read_text(),
        fingerprint=hashlib.sha256(f"{name} {dimension}".encode()).hexdigest(),
        note="Sleeps instead of computing: vectors mean nothing.",
    )

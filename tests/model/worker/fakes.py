"""A fake encoder that runs in real worker processes. An input's first token says what goes wrong.

Rule 1: nothing here imports torch, so a worker with it starts in a fraction of a second.
Rule 2: what it does at load is told by files in ``LoadOptions.folder``, because the folder is all that
reaches the process.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import numpy.typing as npt

from model.errors import CheckpointError
from model.interruption import current_safepoints
from model.types import Features, ModelInfo
from model.worker import LoadOptions, OnStage

LOADER = "tests.model.worker.fakes:load_fake_encoder"
DIMENSION = 4
FINGERPRINT = "0" * 64

RAISE, NOT_FINITE, HANG, OUT_OF_MEMORY, SEGFAULT, WRONG_SHAPE, DEVICE_ASSERT = range(9001, 9008)
UNTIL_INTERRUPTED = 9008
"""Signals, then goes from block to block until so many passes ran in between as its second token says."""
UNTIL_TOLD = 9009
"""Signals, then waits between two of its blocks until it is told to go on."""
OUT_OF_MEMORY_INSIDE = 9010
"""Does not fit in the middle of another pass, but fits alone."""
SECRET = "the very text of the input"

CARD = "6b3a34f3-65b1-d0f0-7f4c-6ac2a8e9f2c4"
ALLOCATED_BYTES, PEAK_BYTES, RESERVED_BYTES = 300, 500, 700
"""What the stand-in for torch tells of its device."""

RUNNING = "running"
"""A FIFO that gets a byte when a pass has begun to hang or to wait."""
GO_ON = "go_on"
"""A FIFO whose byte tells a waiting pass to go on."""
LOADED = "loaded"
"""A FIFO that gets a byte when a process has loaded."""
STUCK = "stuck"
"""A FIFO that gets a byte when a process comes to loading, which then never ends."""
BROKEN = "broken"
"""While this file is there, loading raises a CheckpointError with its text."""
BUGGY = "buggy"
"""While this file is there, loading raises a RuntimeError with its text."""
DEADLY = "deadly"
"""While this file is there, a loading process kills itself with SIGKILL."""
RETRAINED = "retrained"
"""While this file is there, the loaded model has its text for a fingerprint."""
LOST_DEVICE = "lost_device"
"""While this file is there, a stand-in for torch has a CUDA device that fails every call."""


class FakeEncoder:
    """Rows are ``[first id, number of tokens, prompt tokens, sum of ids]``."""

    def __init__(self, options: LoadOptions, folder: Path) -> None:
        self._folder = folder
        self._depth = 0
        self._num_inside = 0
        """Passes that ran in the middle of another."""
        environment = {
            "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
            "cpus": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        }
        retrained = folder / RETRAINED
        fingerprint = retrained.read_text() if retrained.exists() else FINGERPRINT
        self.info = fake_info(options.source, prompts=environment, fingerprint=fingerprint)

    def encode(self, features: Sequence[Features]) -> npt.NDArray[np.float32]:
        self._depth += 1
        self._num_inside += self._depth > 1
        try:
            return self._encode(features)
        finally:
            self._depth -= 1

    def num_padding_tokens(self, features: Sequence[Features]) -> int:
        """As if all were padded to the longest."""
        lengths = [one.num_tokens for one in features]
        return len(lengths) * max(lengths) - sum(lengths)

    def _encode(self, features: Sequence[Features]) -> npt.NDArray[np.float32]:
        rows = [fake_row(one) for one in features]
        for row, one in zip(rows, features, strict=True):
            match one.token_ids[0]:
                case value if value == RAISE:
                    raise KeyError(f"{SECRET},\nand more of it")
                case value if value == NOT_FINITE:
                    row[1] = float("nan")
                case value if value == HANG:
                    signal_fifo(self._folder / RUNNING)
                    threading.Event().wait()
                case value if value == OUT_OF_MEMORY:
                    raise MemoryError(SECRET)
                case value if value == SEGFAULT:
                    os.kill(os.getpid(), signal.SIGSEGV)
                case value if value == WRONG_SHAPE:
                    return np.zeros((1, DIMENSION + 1), dtype=np.float32)
                case value if value == DEVICE_ASSERT:
                    raise RuntimeError("CUDA error: device-side assert triggered")
                case value if value == UNTIL_INTERRUPTED:
                    signal_fifo(self._folder / RUNNING)
                    enough = self._num_inside + int(one.token_ids[1])
                    while self._num_inside < enough:
                        reach_block()
                case value if value == UNTIL_TOLD:
                    reach_block()
                    signal_fifo(self._folder / RUNNING)
                    with (self._folder / GO_ON).open("rb", buffering=0) as go_on:
                        go_on.read(1)
                    reach_block()
                case value if value == OUT_OF_MEMORY_INSIDE and self._depth > 1:
                    raise MemoryError(SECRET)
                case _:
                    pass
        return np.array(rows, dtype=np.float32)


def reach_block() -> None:
    """What a hook does before every block of a real model."""
    points = current_safepoints()
    if points is not None:
        points.on_safepoint()


def load_fake_encoder(options: LoadOptions, on_stage: OnStage) -> FakeEncoder:
    folder = Path(options.folder)
    on_stage("reading")
    on_stage("warming up")
    if (folder / BROKEN).exists():
        raise CheckpointError((folder / BROKEN).read_text())
    if (folder / BUGGY).exists():
        raise RuntimeError((folder / BUGGY).read_text())
    if (folder / DEADLY).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / STUCK).exists():
        signal_fifo(folder / STUCK)
        threading.Event().wait()
    if (folder / LOST_DEVICE).exists():
        sys.modules["torch"] = torch_with_a_lost_device()
    if (folder / LOADED).exists():
        signal_fifo(folder / LOADED)
    return FakeEncoder(options, folder)


def torch_with_a_lost_device() -> ModuleType:
    class Cuda:
        @staticmethod
        def synchronize(device: str) -> None:
            raise RuntimeError(f"CUDA error on {device}: device-side assert triggered")

        @staticmethod
        def memory_stats_as_nested_dict(device: str) -> dict[str, dict[str, dict[str, int]]]:
            return {
                "allocated_bytes": {"all": {"current": ALLOCATED_BYTES, "peak": PEAK_BYTES}},
                "reserved_bytes": {"all": {"current": RESERVED_BYTES, "peak": RESERVED_BYTES}},
            }

        @staticmethod
        def get_device_properties(device: str) -> SimpleNamespace:
            return SimpleNamespace(uuid=CARD)

    torch = ModuleType("torch")
    torch.OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
    torch.cuda = Cuda
    return torch


def fake_row(features: Features) -> list[float]:
    ids = features.token_ids
    return [float(ids[0]), float(len(ids)), float(features.num_prompt_tokens), float(ids.sum())]


def fake_info(
    source: str = "fake", *, prompts: dict[str, str] | None = None, fingerprint: str = FINGERPRINT
) -> ModelInfo:
    return ModelInfo(
        source=source,
        family="fake",
        architecture="Fake",
        dimension=DIMENSION,
        max_tokens=512,
        vocab_size=10_000,
        num_parameters=0,
        dtype="float32",
        device="cpu",
        pooling="mean",
        is_normalized=False,
        is_packed=True,
        packing_note="",
        prompts=prompts or {},
        default_prompt_name=None,
        include_prompt=True,
        matryoshka_dimensions=(),
        tokenizer_json="{}",
        fingerprint=fingerprint,
    )


def features_of(*token_ids: int, num_prompt_tokens: int = 0) -> Features:
    return Features(token_ids=np.array(token_ids, dtype=np.int32), num_prompt_tokens=num_prompt_tokens)


def signal_fifo(path: Path) -> None:
    with path.open("wb", buffering=0) as fifo:
        fifo.write(b"!")

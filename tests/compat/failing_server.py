"""The program, with a model that fails on two words: ``python -m tests.compat.failing_server serve ...``."""

import os
import signal
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from app.cli import main
from model import EmbeddingInput, Features, ModelInfo, Preparer
from model.worker import LoadOptions, OnStage, ProcessWorker
from model.worker.passes import Encoder

RAISES, KILLS = "disaster strikes", "disaster kills"
"""Texts that the encoder raises on, and that kill its process."""
CAUSE = "what only the worker knows"


class FailingEncoder:
    """The real one, but for two texts."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        prepared = Preparer(encoder.info).prepare([EmbeddingInput(text=text) for text in (RAISES, KILLS)])
        self._raises, self._kills = (one.token_ids.tolist() for one in prepared if isinstance(one, Features))

    @property
    def info(self) -> ModelInfo:
        return self._encoder.info

    def encode(self, features: Sequence[Features]) -> npt.NDArray[np.float32]:
        texts = [one.token_ids.tolist() for one in features]
        if self._kills in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._raises in texts:
            raise ArithmeticError(CAUSE)
        return self._encoder.encode(features)

    def num_padding_tokens(self, features: Sequence[Features]) -> int:
        return self._encoder.num_padding_tokens(features)


def load_failing_encoder(options: LoadOptions, on_stage: OnStage) -> FailingEncoder:
    from model.loading import load_encoder

    return FailingEncoder(load_encoder(options, on_stage))


if __name__ == "__main__":
    (ProcessWorker.__init__.__kwdefaults__ or {})["loader"] = (
        "tests.compat.failing_server:load_failing_encoder"
    )
    main()

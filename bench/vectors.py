"""Texts with the vectors that they must get, known before the clock runs, and whether an answer holds them.

Law: a fast wrong vector is worth nothing. One mismatch ends the run.
"""

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.loads import features_of, longest_first, token_passes
from bench.openloop import Sent
from model import Features, Preparer
from model.worker import Worker

MAX_NORM_ERROR = 1e-3


class WrongVectorError(Exception):
    """An answer does not hold the vectors of what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Texts cut into requests, and what is known of each."""

    texts: Sequence[str]
    features: Sequence[Features]
    expected: npt.NDArray[np.float32]
    """``[N, D]``, of unit length."""
    request_texts: int
    """Texts of one request."""

    @property
    def num_requests(self) -> int:
        return -(-len(self.texts) // self.request_texts)

    def span(self, body: int) -> slice:
        """Which texts the request holds."""
        return slice(body * self.request_texts, (body + 1) * self.request_texts)

    def num_tokens(self, body: int) -> int:
        """Tokens of a request."""
        return sum(one.num_tokens for one in self.features[self.span(body)])

    def bodies(self, fields: dict[str, Any]) -> list[bytes]:
        """All requests, serialised, with these fields beside the texts."""
        return [
            json.dumps(
                {"input": list(self.texts[self.span(body)]), "encoding_format": "base64", **fields}
            ).encode()
            for body in range(self.num_requests)
        ]

    def check(self, sent: Sent, *, min_cosine: float) -> None:
        """Compare an answer's vectors with those expected.

        Raises:
            WrongVectorError: Their number, dimension, length or direction is wrong.
        """
        expected_ND = self.expected[self.span(sent.body)]
        rows_ND = rows_of(sent.content)
        if rows_ND.shape != expected_ND.shape:
            raise WrongVectorError(f"vectors of shape {rows_ND.shape}, not {expected_ND.shape}")
        norms_N = np.linalg.norm(rows_ND, axis=1)
        if not (np.abs(norms_N - 1) <= MAX_NORM_ERROR).all():
            raise WrongVectorError(f"a vector of length {norms_N[np.abs(norms_N - 1).argmax()]:.4f}, not 1")
        cosine = float(((rows_ND * expected_ND).sum(axis=1) / norms_N).min())
        if not cosine >= min_cosine:
            raise WrongVectorError(f"a cosine of {cosine:.6f} to the text's own vector, not {min_cosine}")


async def corpus_of(
    texts: Sequence[str], *, preparer: Preparer, workers: Sequence[Worker], request_texts: int
) -> Corpus:
    """Have the bare workers compute what the answers will be compared with."""
    features = features_of(preparer, texts)
    order = longest_first(features)
    passes = iter(list(enumerate(token_passes([features[index] for index in order], 2_048))))
    rows: dict[int, npt.NDArray[np.float32]] = {}

    async def work(worker: Worker) -> None:
        for number, one in passes:
            rows[number] = (await worker.run(one)).rows

    await asyncio.gather(*map(work, workers))
    sorted_ND = np.concatenate([rows[number] for number in range(len(rows))])
    expected_ND = np.empty_like(sorted_ND)
    expected_ND[order] = sorted_ND
    return Corpus(texts=texts, features=features, expected=expected_ND, request_texts=request_texts)


def rows_of(content: bytes) -> npt.NDArray[np.float32]:
    """Vectors of an OpenAI answer, in base64 or as numbers, in the order of their ``index``: ``[N, D]``."""
    data = sorted(json.loads(content)["data"], key=lambda one: one["index"])
    return np.stack([_row(one["embedding"]) for one in data])


def _row(embedding: str | list[float]) -> npt.NDArray[np.float32]:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)

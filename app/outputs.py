"""From rows to the bytes of an answer.

Law: what leaves here is finite. JSON has no NaN; serialisers write ``null`` for it and base64 carries it in
silence, and either is found months later in somebody's index.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import pybase64

from app.engine import Embeddings
from app.wire import (
    CreateEmbeddingResponse,
    Embedding,
    PromptTokensDetails,
    TextsResponse,
    Usage,
)
from model import NonFiniteRowError

# N rows, D dimension of an answer

INLINE_BYTES = 1_000_000
"""Answers of more bytes are encoded in a thread, row by row: 128 rows of 1024 floats take 5 ms."""
FLOAT_TEXT_BYTES = 11
BASE64_BYTES = 16 / 3
"""Bytes on the wire for one number, in either format."""

UNIT_TOLERANCE = 2e-6
"""A row whose squared length is this near to 1 is a unit vector: float32 knows it no better."""

_encoder = msgspec.json.Encoder()


async def encoded(build: Callable[[], msgspec.Struct], *, num_bytes: float) -> bytes:
    """Build an answer and encode it, in a thread if it will have more than ``INLINE_BYTES``."""

    def encode() -> bytes:
        return _encoder.encode(build())

    return encode() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(encode)


def finish_rows(
    rows_ND: npt.NDArray[np.float32], *, dimensions: int | None, normalize: bool
) -> npt.NDArray[np.float32]:
    """Cut rows to the size that was asked for, then make them unit vectors again.

    The order matters: a cut unit vector is shorter than 1, and dot products of such are no cosines.

    Returns:
        (N, dimensions), float32, little-endian and contiguous.

    Raises:
        NonFiniteRowError: A value is NaN or infinite: the worker's own error, should it have missed one.
    """
    cut_ND = np.ascontiguousarray(rows_ND[:, :dimensions], dtype="<f4")
    if normalize:
        squares_N = np.einsum("nd,nd->n", cut_ND, cut_ND)
        # Rows that are unit length already stay as the model gave them, bit for bit. (NaN is not <=, and a
        # row with one has no length: these are finite.)
        if np.abs(squares_N - 1).max() <= UNIT_TOLERANCE:
            return cut_ND
        norms_N1 = np.sqrt(squares_N)[:, None]
        # A row of zeros has no direction; it stays what it is.
        cut_ND = np.ascontiguousarray(cut_ND / np.where(norms_N1 > 0, norms_N1, 1), dtype="<f4")
    if not np.isfinite(cut_ND).all():
        raise NonFiniteRowError
    return cut_ND


def float_texts(rows_ND: npt.NDArray[np.float32]) -> list[msgspec.Raw]:
    """Every row as a JSON array, each number in the shortest text that reads back as the same float32."""
    return [msgspec.Raw(orjson.dumps(row_D, option=orjson.OPT_SERIALIZE_NUMPY)) for row_D in rows_ND]


def base64_texts(rows_ND: npt.NDArray[np.float32]) -> list[msgspec.Raw]:
    """Every row as a JSON string of base64 (RFC 4648, 4), little-endian float32."""
    return [msgspec.Raw(b'"' + pybase64.b64encode(row_D.data) + b'"') for row_D in rows_ND]


async def embedding_answer(
    embeddings: Embeddings, *, dimensions: int | None, normalize: bool, encoding_format: str, model: str
) -> bytes:
    """The body of ``POST /v1/embeddings``."""
    num_tokens, num_image_tokens = sum(embeddings.num_tokens), sum(embeddings.num_image_tokens)
    usage = Usage(
        prompt_tokens=num_tokens,
        total_tokens=num_tokens,
        prompt_tokens_details=PromptTokensDetails(
            text_tokens=num_tokens - num_image_tokens,
            image_tokens=num_image_tokens,
            image_count=embeddings.num_images,
        ),
    )
    answer_id = f"embd-{secrets.token_hex(12)}"
    is_base64 = encoding_format == "base64"

    def build() -> CreateEmbeddingResponse:
        rows_ND = finish_rows(embeddings.rows, dimensions=dimensions, normalize=normalize)
        texts = base64_texts(rows_ND) if is_base64 else float_texts(rows_ND)
        data = [Embedding(index=index, embedding=text) for index, text in enumerate(texts)]
        return CreateEmbeddingResponse(data=data, model=model, usage=usage, id=answer_id)

    num_values = len(embeddings.rows) * (dimensions or embeddings.rows.shape[1])
    value_bytes = BASE64_BYTES if is_base64 else FLOAT_TEXT_BYTES
    return await encoded(build, num_bytes=num_values * value_bytes)


async def texts_answer(embeddings: Embeddings, *, normalize: bool) -> bytes:
    """The body of ``POST /embeddings/text``."""

    def build() -> TextsResponse:
        rows_ND = finish_rows(embeddings.rows, dimensions=None, normalize=normalize)
        return TextsResponse(embeddings=float_texts(rows_ND), dimension=rows_ND.shape[1])

    return await encoded(build, num_bytes=embeddings.rows.size * FLOAT_TEXT_BYTES)


def dimension_choices(dimension: int, matryoshka_dimensions: Sequence[int]) -> tuple[int, ...]:
    """Every size a vector of the model may be asked for in, largest first."""
    return tuple(sorted({dimension, *matryoshka_dimensions}, reverse=True))

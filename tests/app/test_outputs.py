"""Rows leave as unit vectors, finite, in input order, in as few bytes as say all."""

import base64

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import outputs
from app.engine import Embeddings
from app.outputs import (
    base64_texts,
    dimension_choices,
    embedding_answer,
    finish_rows,
    float_texts,
    texts_answer,
)
from model import NonFiniteRowError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def embeddings(matrix: np.ndarray) -> Embeddings:
    count = len(matrix)
    return Embeddings(
        rows=matrix,
        num_tokens=tuple(range(1, count + 1)),
        num_image_tokens=(0,) * count,
        num_images=0,
        modalities=("text",) * count,
        num_dropped_tokens=(0,) * count,
        queue_s=0.0,
        compute_s=0.0,
    )


def random_unit_rows(count: int, dimension: int) -> np.ndarray:
    matrix = np.random.default_rng(7).standard_normal((count, dimension)).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_a_cut_vector_is_a_unit_vector_again():
    """A slice of a unit vector is shorter than 1, and dot products of such are no cosines."""
    cut = finish_rows(rows([0.6, 0.0, 0.8], [0.0, 0.28, 0.96]), dimensions=2, normalize=True)
    assert np.array_equal(cut, rows([1, 0], [0, 1]))


def test_unit_vectors_leave_as_the_model_gave_them():
    """Normalising twice moves the last bit, and answers would differ from the library's own."""
    matrix = random_unit_rows(5, 384)
    assert np.array_equal(finish_rows(matrix, dimensions=None, normalize=True), matrix)


def test_a_model_that_does_not_normalise_is_normalised_unless_declined():
    matrix = rows([3.0, 4.0])
    assert np.allclose(finish_rows(matrix, dimensions=None, normalize=True), rows([0.6, 0.8]))
    assert np.array_equal(finish_rows(matrix, dimensions=None, normalize=False), matrix)
    assert np.array_equal(finish_rows(matrix, dimensions=1, normalize=False), rows([3.0]))


def test_a_row_of_zeros_stays_finite():
    assert np.array_equal(finish_rows(rows([0, 0], [3, 4]), dimensions=None, normalize=True)[0], [0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_value_that_is_not_finite_never_leaves(bad: float, normalize: bool):
    """JSON has no NaN: orjson and msgspec write null, and base64 carries it in silence."""
    with pytest.raises(NonFiniteRowError):
        finish_rows(rows([1, 0], [0, bad]), dimensions=None, normalize=normalize)


@given(values=st.lists(FLOATS, min_size=1, max_size=20))
def test_numbers_read_back_as_the_same_float32(values: list[float]):
    matrix = rows(values)
    read = np.array(msgspec.json.decode(float_texts(matrix)[0]), dtype=np.float32)
    assert np.array_equal(read, matrix[0])


def test_numbers_are_as_short_as_float32_allows():
    """17 digits of a double say nothing more and double the answer."""
    assert bytes(float_texts(rows([0.1, 1 / 3]))[0]) == b"[0.1,0.33333334]"


@given(values=st.lists(FLOATS, min_size=1, max_size=20))
def test_base64_is_little_endian_float32_with_padding(values: list[float]):
    """Both SDKs read it so, without asking."""
    matrix = rows(values)
    text = msgspec.json.decode(base64_texts(matrix)[0])
    assert np.array_equal(np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4"), matrix[0])


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize("inline_bytes", [0, 10**9])
async def test_an_answer_is_whole_and_in_order_in_either_place(
    encoding_format: str, inline_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    """Large answers are encoded in a thread; nobody may see the difference."""
    monkeypatch.setattr(outputs, "INLINE_BYTES", inline_bytes)
    matrix = random_unit_rows(3, 4)

    body = msgspec.json.decode(
        await embedding_answer(
            embeddings(matrix), dimensions=None, normalize=True, encoding_format=encoding_format, model="m"
        )
    )

    assert list(body) == ["object", "id", "model", "data", "usage"]
    assert body["object"] == "list"
    assert body["id"].startswith("embd-")
    assert body["usage"] == {
        "prompt_tokens": 6,
        "total_tokens": 6,
        "prompt_tokens_details": {"text_tokens": 6, "image_tokens": 0, "image_count": 0},
    }
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    assert {item["object"] for item in body["data"]} == {"embedding"}
    for item, row in zip(body["data"], matrix, strict=True):
        vector = item["embedding"]
        if encoding_format == "base64":
            vector = np.frombuffer(base64.b64decode(vector), dtype="<f4")
        assert np.array_equal(np.array(vector, dtype=np.float32), row)


async def test_plain_texts_get_plain_lists():
    body = msgspec.json.decode(await texts_answer(embeddings(rows([0.6, 0.8])), normalize=True))
    assert body == {"embeddings": [[0.6, 0.8]], "dimension": 2}


def test_the_native_size_is_always_a_choice():
    assert dimension_choices(384, ()) == (384,)
    assert dimension_choices(768, (512, 256, 768)) == (768, 512, 256)

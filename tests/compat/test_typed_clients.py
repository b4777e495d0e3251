"""Cohere's and Voyage's own clients, unchanged, against the real server: texts, and images with a tiny model."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import cohere
import httpx2
import numpy as np
import PIL.Image
import pytest
import voyageai
from sentence_transformers import SentenceTransformer

from tests.compat.conftest import assert_same_vectors
from tests.servers import RunningServer

MODEL = "all-MiniLM-L6-v2"
TINY_GME = "tiny-gme"
TEXTS = ["Gorillas live in the forests of central Africa.", "日本語 🙂", "indexing " * 500]

DATA = Path(__file__).parents[1] / "data"
REFERENCE = json.loads((DATA / "gme_reference" / "reference.json").read_text())
CASES: list[dict[str, Any]] = REFERENCE["cases"]
INSTRUCTION = "Find an image that matches the given text."


def cohere_client(server: RunningServer) -> cohere.ClientV2:
    return cohere.ClientV2(api_key="none", base_url=server.root, max_retries=0)


def voyage_client(server: RunningServer) -> voyageai.Client:
    return voyageai.Client(api_key="none", base_url=server.base_url)


# Texts -----------------------------------------------------------------------------------------------------


def test_cohere_with_texts(server: RunningServer, reference: SentenceTransformer) -> None:
    types = ["float", "base64", "binary", "ubinary"]
    with cohere_client(server) as client:
        answer = client.embed(model=MODEL, texts=TEXTS, input_type="search_document", embedding_types=types)
    vectors = reference.encode(TEXTS)
    assert_same_vectors(answer.embeddings.float_, vectors)
    assert answer.embeddings.base64 is not None
    assert_same_vectors(
        [np.frombuffer(base64.b64decode(text), "<f4") for text in answer.embeddings.base64], vectors
    )
    bits = np.unpackbits(np.array(answer.embeddings.ubinary, np.uint8), axis=-1)
    assert (bits == (np.array(answer.embeddings.float_) > 0)).all()
    assert (np.array(answer.embeddings.binary) + 128 == answer.embeddings.ubinary).all()
    assert answer.texts == TEXTS
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.input_tokens == sum(
        min(len(ids), 256) for ids in reference.tokenizer(TEXTS)["input_ids"]
    )


async def test_cohere_async_with_inputs_of_parts(
    server: RunningServer, reference: SentenceTransformer
) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    async with cohere.AsyncClientV2(api_key="none", base_url=server.root) as client:
        answer = await client.embed(model=MODEL, inputs=inputs, input_type="search_query")  # pyright: ignore
    assert_same_vectors(answer.embeddings.float_, reference.encode(TEXTS))


def test_cohere_understands_refusals(server: RunningServer) -> None:
    with cohere_client(server) as client:
        with pytest.raises(cohere.BadRequestError) as empty:
            client.embed(model=MODEL, texts=["x", ""], input_type="search_query")
        assert empty.value.body["message"] == "'texts[1]' is an empty string."
        with pytest.raises(cohere.NotFoundError) as unknown:
            client.embed(model="gpt-17", texts=["x"], input_type="search_query")
        assert MODEL in unknown.value.body["message"]
        with pytest.raises(cohere.BadRequestError) as image:
            client.embed(model=MODEL, images=["data:image/png;base64,AA=="], input_type="image")
        assert image.value.body["error"]["code"] == "unsupported_modality"


def test_voyage_with_texts(server: RunningServer, reference: SentenceTransformer) -> None:
    """It goes to the endpoint of OpenAI's clients, with Voyage's own words for length and size."""
    answer = voyage_client(server).embed(TEXTS, model=MODEL, input_type="document")
    assert_same_vectors(answer.embeddings, reference.encode(TEXTS))
    assert answer.total_tokens == sum(min(len(ids), 256) for ids in reference.tokenizer(TEXTS)["input_ids"])


def test_voyages_words_for_length_and_size_are_understood_with_texts(server: RunningServer) -> None:
    client = voyage_client(server)
    assert len(client.embed(["x"], model=MODEL, output_dimension=384).embeddings[0]) == 384
    for fields in ({"output_dimension": 100}, {"output_dtype": "int8"}):
        with pytest.raises(voyageai.error.APIError, match="invalid_request_error"):
            client.embed(["x"], model=MODEL, **fields)
    with pytest.raises(voyageai.error.APIError, match="context_length_exceeded"):
        client.embed(["long " * 400], model=MODEL, truncation=False)


def test_voyage_with_inputs_of_strings(server: RunningServer, reference: SentenceTransformer) -> None:
    answer = voyage_client(server).multimodal_embed([[text] for text in TEXTS], model=MODEL)
    assert_same_vectors(answer.embeddings, reference.encode(TEXTS))
    lengths = [min(len(ids), 256) for ids in reference.tokenizer(TEXTS)["input_ids"]]
    assert answer.text_tokens == answer.total_tokens == sum(lengths)
    assert (answer.image_pixels, answer.video_pixels) == (0, 0)


async def test_voyage_async(server: RunningServer, reference: SentenceTransformer) -> None:
    client = voyageai.AsyncClient(api_key="none", base_url=server.base_url)
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    answer = await client.multimodal_embed(inputs, model=MODEL, input_type="query")
    assert_same_vectors(answer.embeddings, reference.encode(TEXTS))


def test_voyage_understands_refusals(server: RunningServer) -> None:
    client = voyage_client(server)
    with pytest.raises(voyageai.error.InvalidRequestError) as empty:
        client.multimodal_embed([["x"], [""]], model=MODEL)
    assert str(empty.value) == "'inputs[1].content' is an empty string."
    with pytest.raises(voyageai.error.InvalidRequestError) as too_long:
        client.multimodal_embed([["long " * 400]], model=MODEL, truncation=False)
    assert "maximum context length is 256 tokens" in str(too_long.value)
    with pytest.raises(voyageai.error.InvalidRequestError, match="images are not supported"):
        client.multimodal_embed([[picture(0)]], model=MODEL)


# Images ----------------------------------------------------------------------------------------------------


def file_of(number: int) -> bytes:
    return (DATA / "gme_reference" / f"image{number}.png").read_bytes()


def picture(number: int) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(file_of(number)))
    image.load()
    return image


def data_uri(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(file_of(number)).decode()


def case(
    text: str | None, number: int | None, *, instruction: str | None = None, is_query: bool = True
) -> dict[str, Any]:
    image = None if number is None else f"image{number}.png"
    [found] = [
        one
        for one in CASES
        if (one["text"], one["image"], one["instruction"], one["is_query"])
        == (text, image, instruction, is_query)
    ]
    return found


IMAGES = [case(None, number, is_query=False) for number in range(4)]
PAIRS = [one for one in CASES if one["text"] and one["image"] and one["instruction"] is None]
QUERIES = [one for one in CASES if one["image"] is None and one["instruction"] and one["is_query"]]


def vectors_of(cases: list[dict[str, Any]]) -> np.ndarray:
    return np.array([one["embedding"] for one in cases], dtype=np.float32)


def tokens_of(cases: list[dict[str, Any]]) -> int:
    return sum(one["num_tokens"] for one in cases)


def test_cohere_with_images(golden_server: RunningServer) -> None:
    with cohere_client(golden_server) as client:
        answer = client.embed(
            model=TINY_GME, images=[data_uri(number) for number in range(4)], input_type="image"
        )
    assert_same_vectors(answer.embeddings.float_, vectors_of(IMAGES))
    assert answer.meta is not None
    units = answer.meta.billed_units
    assert units is not None
    assert (units.images, units.input_tokens) == (4, tokens_of(IMAGES))
    assert units.image_tokens is not None
    assert 0 < units.image_tokens < tokens_of(IMAGES)


def test_cohere_with_texts_and_images_together(golden_server: RunningServer) -> None:
    inputs = [
        {
            "content": [
                {"type": "text", "text": one["text"]},
                {"type": "image_url", "image_url": {"url": data_uri(int(one["image"][5]))}},
            ]
        }
        for one in PAIRS
    ]
    with cohere_client(golden_server) as client:
        answer = client.embed(model=TINY_GME, inputs=inputs, input_type="search_query")  # pyright: ignore
        with pytest.raises(cohere.BadRequestError) as broken:
            client.embed(model=TINY_GME, images=["data:image/png;base64,AAAA"], input_type="image")
    assert_same_vectors(answer.embeddings.float_, vectors_of(PAIRS))
    assert broken.value.body["error"]["param"] == "images[0]"


def test_voyage_with_pictures_and_strings(golden_server: RunningServer) -> None:
    """Pillow images go as lossless WebP, whose pixels are those of the files."""
    inputs = [[one["text"], picture(int(one["image"][5]))] for one in PAIRS]
    answer = voyage_client(golden_server).multimodal_embed(inputs, model=TINY_GME)
    assert_same_vectors(answer.embeddings, vectors_of(PAIRS))
    assert answer.total_tokens == tokens_of(PAIRS)
    assert answer.image_pixels == (answer.total_tokens - answer.text_tokens) * 28 * 28
    assert answer.text_tokens > 0


def test_voyage_with_parts(golden_server: RunningServer) -> None:
    inputs = [
        {"content": [{"type": "image_base64", "image_base64": data_uri(number)}]} for number in range(4)
    ]
    client = voyage_client(golden_server)
    answer = client.multimodal_embed(inputs, model=TINY_GME, input_type="document")
    assert_same_vectors(answer.embeddings, vectors_of(IMAGES))
    broken = {"content": [{"type": "image_base64", "image_base64": "data:image/png;base64,AAAA"}]}
    with pytest.raises(voyageai.error.InvalidRequestError) as caught:
        client.multimodal_embed([inputs[0], broken], model=TINY_GME)
    assert caught.value.json_body["error"]["param"] == "inputs[1].content[0]"


# The endpoints of the service that came before -------------------------------------------------------------


def post(server: RunningServer, path: str, body: object) -> Any:
    answer = httpx2.post(f"{server.root}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_images_by_data_uri_and_by_base64(golden_server: RunningServer) -> None:
    images = [data_uri(0), data_uri(1), *(base64.b64encode(file_of(number)).decode() for number in (2, 3))]
    for body in ({"images": images, "is_query": True}, {"images": images, "is_query": False}):
        answer = post(golden_server, "/embeddings/image", body)
        assert_same_vectors(answer["embeddings"], vectors_of(IMAGES))
        assert answer["dimension"] == 64


def test_texts_fused_with_images(golden_server: RunningServer) -> None:
    instructed = case(PAIRS[0]["text"], 0, instruction=INSTRUCTION)
    body = {
        "texts": [one["text"] for one in PAIRS],
        "images": [data_uri(int(one["image"][5])) for one in PAIRS],
    }
    answer = post(golden_server, "/embeddings/fused", body)
    assert_same_vectors(answer["embeddings"], vectors_of(PAIRS))
    one = {"texts": body["texts"][:1], "images": body["images"][:1], "instruction": INSTRUCTION}
    assert_same_vectors(post(golden_server, "/embeddings/fused", one)["embeddings"], vectors_of([instructed]))
    documents = post(golden_server, "/embeddings/fused", {**one, "is_query": False})
    assert_same_vectors(documents["embeddings"], vectors_of(PAIRS[:1]))


def test_texts_against_images(golden_server: RunningServer) -> None:
    """The instruction counts for the texts alone."""
    texts = [one["text"] for one in QUERIES]
    images = [data_uri(number) for number in range(4)]
    answer = post(
        golden_server, "/similarity", {"texts": texts, "images": images, "instruction": INSTRUCTION}
    )
    assert answer["shape"] == [len(texts), 4]
    expected = vectors_of(QUERIES) @ vectors_of(IMAGES).T
    assert np.abs(np.array(answer["similarity_matrix"]) - expected).max() < 1e-5
    alone = post(golden_server, "/similarity", {"images": images, "instruction": INSTRUCTION})
    assert alone["shape"] == [4, 4]
    expected = vectors_of(IMAGES) @ vectors_of(IMAGES).T
    assert np.abs(np.array(alone["similarity_matrix"]) - expected).max() < 1e-5

"""``POST /v2/embed``: Cohere's body, our vectors."""

import base64
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from app.dialects.cohere import CohereEmbedRequest, binary_texts, translate, ubinary_texts
from app.wire import ImageURL, ImageURLPart, Item, TextPart
from batching import Lane
from model import EmbeddingInput, Truncation
from tests.app.fakes import INFO, Answer, FakeEngine, Gateway, vector_of, with_settings

PNG = "data:image/png;base64,AA=="


async def embed(gateway: Gateway | None = None, **fields: object) -> Answer:
    return await (gateway or Gateway()).post("/v2/embed", {"model": "tiny", **fields})


def refusal(answer: Answer) -> tuple[str, str | None]:
    """Message and param; asserts that Cohere's clients and OpenAI's find the same message."""
    assert set(answer.json) == {"message", "error"}
    assert answer.json["message"] == answer.json["error"]["message"]
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    return answer.json["message"], answer.json["error"]["param"]


async def test_texts_become_vectors_by_type():
    answer = await embed(texts=["a", "b c"], input_type="search_document", embedding_types=["float"])
    assert answer.status == 200
    body = answer.json
    assert list(body) == ["id", "embeddings", "texts", "meta", "response_type"]
    expected = [vector_of(EmbeddingInput(text=text, prompt_name="document")) for text in ("a", "b c")]
    assert np.array_equal(np.array(body["embeddings"]["float"], dtype=np.float32), expected)
    assert list(body["embeddings"]) == ["float"]
    assert body["texts"] == ["a", "b c"]
    assert body["response_type"] == "embeddings_by_type"
    assert body["meta"] == {
        "billed_units": {"input_tokens": 3, "text_tokens": 3, "image_tokens": 0, "images": 0},
        "api_version": {"version": "2"},
    }


async def test_every_type_holds_the_same_vectors():
    types = ["float", "base64", "binary", "ubinary"]
    vectors = (await embed(texts=["a", "b"], embedding_types=types)).json["embeddings"]
    assert list(vectors) == types
    floats = np.array(vectors["float"], dtype=np.float32)
    assert np.array_equal(
        [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors["base64"]], floats
    )
    # As Cohere's own examples unpack them.
    assert np.array_equal(np.unpackbits(np.array(vectors["ubinary"], np.uint8), axis=-1), floats > 0)
    assert np.array_equal(np.array(vectors["binary"]) + 128, vectors["ubinary"])


def test_signs_are_packed_from_the_highest_bit_on():
    row = np.array([[0.5, -1, -1, -1, -1, -1, -1, 2, 0, 1, 1, 1, 1, 1, 1, 1]], dtype=np.float32)
    assert [msgspec.json.decode(text) for text in ubinary_texts(row)] == [[0b1000_0001, 0b0111_1111]]
    assert [msgspec.json.decode(text) for text in binary_texts(row)] == [[1, -1]]


async def test_types_that_need_a_scale_are_refused():
    """Scaled by a guess, int8 vectors would lose in recall without anybody being told."""
    message, param = refusal(await embed(texts=["a"], embedding_types=["float", "int8"]))
    assert message == "'int8' is not an embedding type here. Allowed: float, base64, binary, ubinary."
    assert param == "embedding_types"


async def test_vectors_that_fill_no_bytes_are_not_packed():
    message, param = refusal(await embed(texts=["a"], embedding_types=["binary"], output_dimension=4))
    assert message == "Binary types pack 8 numbers in a byte; vectors of 4 cannot be packed."
    assert param == "embedding_types"


@pytest.mark.parametrize(
    ("given", "what", "param"),
    [
        ({}, "none of them", "inputs"),
        ({"texts": ["a"], "images": [PNG]}, "'texts' and 'images'", "images"),
        ({"texts": [], "inputs": []}, "'texts' and 'inputs'", "inputs"),
    ],
)
async def test_exactly_one_kind_of_input_is_taken(given: dict[str, Any], what: str, param: str):
    answer = await embed(**given)
    assert answer.status == 400
    assert refusal(answer) == (f"Send exactly one of 'texts', 'images' and 'inputs', not {what}.", param)
    assert (await embed(texts=["a"], images=None, inputs=None)).status == 200


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"texts": ["a", ""]}, "'texts[1]' is an empty string.", "texts[1]"),
        ({"texts": ["a"] * 3}, "'texts' holds 3 inputs; one request may hold 2 (max_inputs).", "texts"),
        (
            {"inputs": [{"content": [{"type": "text", "text": ""}]}]},
            "'inputs[0].content' is an empty string.",
            "inputs[0].content",
        ),
        (
            {"texts": ["a"], "output_dimension": 3},
            "This model gives no vectors of 3 dimensions. Allowed: 8, 4, 2.",
            "output_dimension",
        ),
        (
            {"texts": ["a"], "max_tokens": 0},
            "'max_tokens' must be at least 1, or -1 for the model's limit, not 0.",
            "max_tokens",
        ),
        (
            {"texts": ["a"], "truncate": "MIDDLE"},
            "Invalid value for 'truncate': 'MIDDLE'. Allowed: NONE, START, END.",
            "truncate",
        ),
        (
            {"texts": ["a"], "input_type": "answer"},
            "'answer' is not an input type of this model. Allowed: search_query, search_document, "
            "classification, clustering, image, query, document, retrieval.query, retrieval_query, passage, "
            "retrieval.passage, retrieval_document, corpus, text.",
            "input_type",
        ),
        (
            {"inputs": [{"content": [{"type": "text", "text": "a"}], "imgae": 1}]},
            "Unknown parameter: 'inputs[0].imgae'.",
            "inputs[0].imgae",
        ),
    ],
)
async def test_what_is_wrong_is_named_as_the_client_named_it(
    fields: dict[str, Any], message: str, param: str
):
    answer = await embed(Gateway(settings=with_settings(limits={"max_inputs": 2})), **fields)
    assert answer.status == 400
    assert refusal(answer) == (message, param)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"images": [PNG]}, "images"),
        (
            {"inputs": [{"content": [{"type": "image_url", "image_url": {"url": PNG}}]}]},
            "inputs[0].content[0]",
        ),
    ],
)
async def test_images_are_refused_on_a_text_model(given: dict[str, Any], param: str):
    answer = await embed(**given)
    assert answer.status == 400
    assert answer.json["error"]["code"] == "unsupported_modality"
    assert refusal(answer)[1].startswith(param)


async def test_a_text_that_looks_like_an_image_stays_a_text():
    gateway = Gateway()
    assert (await embed(gateway, texts=[PNG])).status == 200
    assert gateway.engine.calls[0].inputs[0].text == PNG


@pytest.mark.parametrize(
    ("prompts", "input_type", "prompt_name"),
    [
        ({}, "search_query", "query"),
        ({}, "search_document", "document"),
        ({}, "image", "document"),
        ({}, "classification", None),
        ({"clustering": "clustering: "}, "clustering", "clustering"),
        ({"search_query": "search_query: "}, "search_query", "search_query"),
        ({}, None, None),
    ],
)
async def test_input_types_choose_the_models_prompts(
    prompts: dict[str, str], input_type: str | None, prompt_name: str | None
):
    engine = FakeEngine(info_=replace(INFO, prompts=prompts))
    await embed(Gateway(engine), texts=["a"], input_type=input_type)
    assert engine.calls[0].inputs[0].prompt_name == prompt_name


async def test_too_long_inputs_are_cut_as_cohere_cuts_them():
    """Its default is END, whatever this server's is."""
    gateway = Gateway(settings=with_settings(model={"truncate": Truncation.NONE}))
    await embed(gateway, texts=["a"])
    await embed(gateway, texts=["a"], truncate="START", max_tokens=5)
    await embed(gateway, texts=["a"], truncate="NONE")
    inputs = [call.inputs[0] for call in gateway.engine.calls]
    assert [one.truncation for one in inputs] == [Truncation.END, Truncation.START, Truncation.NONE]
    assert [one.max_tokens for one in inputs] == [None, 5, None]


async def test_a_priority_chooses_the_lane():
    gateway = Gateway()
    for priority in (-1, 5, 99):
        await embed(gateway, texts=["a"], priority=priority)
    assert [call.lane for call in gateway.engine.calls] == [Lane.QUERY, Lane.DOCUMENT, Lane.BATCH]


async def test_vectors_are_cut_to_the_dimension():
    vectors = (await embed(texts=["a"], output_dimension=4)).json["embeddings"]["float"]
    assert len(vectors[0]) == 4
    assert np.isclose(np.linalg.norm(vectors[0]), 1)


async def test_failures_of_every_kind_carry_the_message_at_the_top():
    assert refusal(await embed(model="gpt-17", texts=["a"]))[1] == "model"
    assert refusal(await Gateway().post("/v2/embed", b"{"))[0].startswith(
        "The request body is not valid JSON"
    )
    loading = await embed(Gateway(FakeEngine(stage="loading")), texts=["a"])
    assert loading.status == 503
    assert loading.headers["retry-after"] == "5"
    assert refusal(loading) == ("The model is not ready: loading.", None)


async def test_parameters_nobody_knows_are_named():
    answer = await embed(texts=["a"], user="u")
    assert answer.headers["x-ignored-params"] == "user"
    assert answer.headers["x-ratelimit-limit-requests"]


def test_images_and_parts_are_read_as_such():
    images = translate(CohereEmbedRequest(model="m", images=["u"], input_type="image"), prompts={})
    assert (images.request.input, images.request.modality) == (["u"], "image")
    assert images.request.input_type == "document"
    assert images.names.name_of("input[0]") == "images[0]"
    item = Item(content=[TextPart(text="t"), ImageURLPart(image_url=ImageURL(url="u"))])
    parts = translate(CohereEmbedRequest(model="m", inputs=[item]), prompts={})
    assert (parts.request.input, parts.request.modality) == ([item], None)
    assert parts.names.name_of("input[0].content[1]") == "inputs[0].content[1]"

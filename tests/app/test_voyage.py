"""``POST /v1/multimodalembeddings``: Voyage's body, our vectors."""

import base64
from typing import Any

import numpy as np
import pytest

from app.dialects.voyage import VoyageMultimodalRequest, translate
from app.wire import ImageBase64Part, Item, TextPart
from model import EmbeddingInput, Truncation
from tests.app.fakes import Answer, FakeEngine, Gateway, vector_of, with_settings

PNG = "data:image/png;base64,AA=="


def text_input(*texts: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text} for text in texts]}


async def embed(gateway: Gateway | None = None, *, inputs: object, **fields: object) -> Answer:
    return await (gateway or Gateway()).post(
        "/v1/multimodalembeddings", {"model": "tiny", "inputs": inputs, **fields}
    )


def refusal(answer: Answer) -> tuple[str, str | None]:
    """Message and param; asserts that Voyage's clients and OpenAI's find the same message."""
    assert set(answer.json) == {"detail", "error"}
    assert answer.json["detail"] == answer.json["error"]["message"]
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    return answer.json["detail"], answer.json["error"]["param"]


async def test_inputs_become_vectors_with_their_usage():
    answer = await embed(inputs=[text_input("a"), text_input("b c")], input_type="query")
    assert answer.status == 200
    body = answer.json
    assert list(body) == ["object", "data", "model", "usage"]
    expected = [vector_of(EmbeddingInput(text=text, prompt_name="query")) for text in ("a", "b c")]
    rows = [one["embedding"] for one in body["data"]]
    assert np.array_equal(np.array(rows, dtype=np.float32), expected)
    assert [(one["object"], one["index"]) for one in body["data"]] == [("embedding", 0), ("embedding", 1)]
    assert (body["object"], body["model"]) == ("list", "tiny")
    assert body["usage"] == {"text_tokens": 3, "image_pixels": 0, "video_pixels": 0, "total_tokens": 3}


async def test_parts_of_one_input_make_one_vector():
    gateway = Gateway()
    answer = await embed(gateway, inputs=[text_input("a", "b")])
    assert len(answer.json["data"]) == 1
    assert gateway.engine.calls[0].inputs[0].text == "a\nb"


@pytest.mark.parametrize("field", ["output_encoding", "encoding_format"])
async def test_vectors_come_in_base64_by_either_name(field: str):
    """The documentation has one, the SDK sends the other."""
    answer = await embed(inputs=[text_input("a")], **{field: "base64"})
    [row] = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer.json["data"]]
    assert np.array_equal(row, vector_of(EmbeddingInput(text="a")))


@pytest.mark.parametrize(
    ("truncation", "expected"), [(None, Truncation.END), (True, Truncation.END), (False, Truncation.NONE)]
)
async def test_inputs_are_cut_unless_the_client_says_no(truncation: bool | None, expected: Truncation):
    gateway = Gateway(settings=with_settings(model={"truncate": Truncation.NONE}))
    await embed(gateway, inputs=[text_input("a")], truncation=truncation)
    assert gateway.engine.calls[0].inputs[0].truncation is expected


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"inputs": []}, None, "inputs"),
        (
            {"inputs": [text_input("a"), text_input("")]},
            "'inputs[1].content' is an empty string.",
            "inputs[1].content",
        ),
        (
            {"inputs": [text_input("a")], "output_dimension": 3},
            "This model gives no vectors of 3 dimensions. Allowed: 8, 4, 2.",
            "output_dimension",
        ),
        ({"inputs": [text_input("a")], "output_dtype": "int8"}, None, "output_dtype"),
        ({"inputs": ["a"]}, "Invalid value for 'inputs[0]': expected object, got string.", "inputs[0]"),
        (
            {"inputs": [{"content": [{"type": "video_url", "video_url": "u"}]}]},
            None,
            "inputs[0].content[0].type",
        ),
        (
            {"inputs": [text_input("a")], "output_encoding": "hex"},
            "Invalid value for 'output_encoding': 'hex'. Allowed: float, base64.",
            "output_encoding",
        ),
    ],
)
async def test_what_is_wrong_is_named_as_the_client_named_it(
    fields: dict[str, Any], message: str | None, param: str
):
    answer = await embed(**fields)
    assert answer.status == 400
    told, blamed = refusal(answer)
    assert blamed == param
    assert message is None or told == message


async def test_images_are_refused_on_a_text_model():
    answer = await embed(inputs=[{"content": [{"type": "image_base64", "image_base64": PNG}]}])
    assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported_modality")
    assert (refusal(answer)[1] or "").startswith("inputs[0].content[0]")


async def test_failures_of_every_kind_carry_the_message_at_the_top():
    """Voyage's SDK replaces a failure without it by one that says nothing."""
    unknown = await embed(inputs=[text_input("a")], model="gpt-17")
    assert unknown.status == 404
    assert refusal(unknown)[1] == "model"
    loading = await embed(Gateway(FakeEngine(stage="loading")), inputs=[text_input("a")])
    assert (loading.status, refusal(loading)) == (503, ("The model is not ready: loading.", None))


async def test_parameters_nobody_knows_are_named():
    answer = await embed(inputs=[text_input("a")], user="u")
    assert answer.headers["x-ignored-params"] == "user"
    assert answer.headers["x-ratelimit-limit-requests"]


def test_parts_are_read_as_they_are():
    item = Item(content=[TextPart(text="t"), ImageBase64Part(image_base64=PNG)])
    translation = translate(VoyageMultimodalRequest(inputs=[item], model="m"))
    assert (translation.request.input, translation.request.modality) == ([item], None)
    assert translation.names.name_of("input[0].content[1].image_base64") == (
        "inputs[0].content[1].image_base64"
    )


async def test_voyages_name_for_the_size_is_understood_with_texts():
    """Its SDK sends texts to the endpoint of OpenAI's clients; ignored, the vectors would be of another size."""
    gateway = Gateway()
    cut = await gateway.embed("a", output_dimension=4, output_dtype=None, truncation=True)
    assert len(cut.json["data"][0]["embedding"]) == 4
    assert "x-ignored-params" not in cut.headers
    refused = await gateway.embed("a", output_dimension=3)
    assert (refused.status, refused.error["param"]) == (400, "output_dimension")
    assert len((await gateway.embed("a", dimensions=2, output_dimension=4)).json["data"][0]["embedding"]) == 2

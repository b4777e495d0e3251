"""Every dialect is read by the parser of /v1/embeddings, and told in its own words."""

from typing import Any

import numpy as np
import pytest

from app.dialects import cohere, original, voyage
from app.dialects.translation import Names, Translation
from app.errors import InvalidRequestError
from app.inputs import EmbeddingRequest, parse
from app.preparation import InputRefusedError
from app.settings import Settings
from app.wire import ImageBase64Part, ImageURL, ImageURLPart, Item, TextPart
from batching import Lane
from model import DecodedImage, EmbeddingInput, ImageInputs, InputTooLongError
from tests.app.fakes import MULTIMODAL, FakeEngine, Gateway, vector_of, with_settings

PNG = "data:image/png;base64,iVBORw0KGgo="
PAIR = Item(content=[TextPart(text="t"), ImageURLPart(image_url=ImageURL(url=PNG))])


def read(translation: Translation, settings: Settings | None = None) -> EmbeddingRequest:
    wanted = parse(
        translation.request,
        headers={},
        model_input_type=None,
        info=MULTIMODAL,
        settings=settings or Settings(),
        cl100k=None,
    )
    return translation.names.renamed_request(wanted)


def images_request(images: list[str], *, is_query: bool | None = None) -> Translation:
    return original.translate_images(
        original.ImagesRequest(images=images, is_query=is_query, instruction="i"), model="tiny"
    )


TRANSLATIONS: dict[str, tuple[Translation, list[str | None], list[str]]] = {
    "images": (images_request([PNG, PNG]), [None, None], ["images[0]", "images[1]"]),
    "pairs": (
        original.translate_fused(original.FusedRequest(texts=["a", "b"], images=[PNG, PNG]), model="tiny"),
        ["a", "b"],
        ["images[0]", "images[1]"],
    ),
    "similarity": (
        original.translate_similarity(
            original.SimilarityRequest(texts=["a", "b"], images=[PNG]), model="tiny"
        ),
        ["a", "b", None],
        ["images[0]"],
    ),
    "Cohere's images": (
        cohere.translate(cohere.CohereEmbedRequest(model="tiny", images=[PNG]), prompts={}),
        [None],
        ["images[0]"],
    ),
    "Cohere's inputs": (
        cohere.translate(cohere.CohereEmbedRequest(model="tiny", inputs=[PAIR]), prompts={}),
        ["t"],
        ["inputs[0].content[1]"],
    ),
    "Voyage's inputs": (
        voyage.translate(
            voyage.VoyageMultimodalRequest(
                model="tiny", inputs=[PAIR, Item(content=[ImageBase64Part(image_base64=PNG)])]
            )
        ),
        ["t", None],
        ["inputs[0].content[1]", "inputs[1].content[0]"],
    ),
}


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_texts_and_images_arrive_as_they_were_sent(name: str):
    """One input a vector, and what fails to be fetched is blamed by the client's own name."""
    translation, texts, params = TRANSLATIONS[name]
    wanted = read(translation)
    assert [one.text for one in wanted.inputs] == texts
    references = [one for of_input in wanted.image_references for one in of_input]
    assert [one.param for one in references] == params
    assert {(one.data or "")[one.data_start :] for one in references} == {PNG.rpartition(",")[2]}


@pytest.mark.parametrize(("is_query", "ignored"), [(None, ()), (True, ()), (False, ("instruction",))])
def test_an_instruction_that_documents_do_not_take_is_named(is_query: bool | None, ignored: tuple[str, ...]):
    assert read(images_request([PNG, PNG], is_query=is_query)).ignored == ignored


def test_what_a_comparison_says_of_its_texts_is_not_said_of_its_images():
    data = original.SimilarityRequest(texts=["a"], images=[PNG], instruction="i")
    wanted = read(original.translate_similarity(data, model="tiny"))
    assert [(one.prompt_name, one.instruction) for one in wanted.inputs] == [
        ("query", "i"),
        ("document", None),
    ]
    assert wanted.ignored == ()


@pytest.mark.parametrize(
    ("translation", "message", "param"),
    [
        (
            images_request(["data:image/png;base64,"]),
            None,
            "images[0]",
        ),
        (images_request(["ftp://host/a.png"]), None, "images[0]"),
        (images_request([PNG] * 3), "The request holds 3 images; one request may hold 2 (max_images).", "images[2]"),
        (
            voyage.translate(
                voyage.VoyageMultimodalRequest(
                    model="tiny", inputs=[Item(content=[ImageBase64Part(image_base64=PNG)] * 2)]
                )
            ),
            "'inputs[0]' holds 2 images; this model reads 1 in one input.",
            "inputs[0]",
        ),
    ],
)  # fmt: skip
def test_a_refused_image_is_named_as_the_client_named_it(
    translation: Translation, message: str | None, param: str
):
    with pytest.raises(InvalidRequestError) as caught:
        read(translation, with_settings(media={"max_images": 2}))
    error = translation.names.renamed(caught.value)
    assert error.param == param
    assert error.code in ("invalid_image", "too_many_images")
    assert "input[" not in error.message
    assert message is None or error.message == message


def test_names_keep_what_has_no_other():
    names = Names(inputs="texts", fields={"truncate_prompt_tokens": "max_tokens"})
    params = ["input", "input[2].text", "truncate_prompt_tokens", "input_type"]
    assert [names.name_of(param) for param in params] == [
        "texts",
        "texts[2].text",
        "max_tokens",
        "input_type",
    ]
    odd = InvalidRequestError("It is odd.", code="odd")
    assert names.renamed(odd) is odd


async def test_a_failure_in_the_model_is_named_as_the_client_named_it():
    """The parser is long done by then."""
    too_long = InputRefusedError(1, InputTooLongError(num_tokens=99, max_tokens=16))
    for path, body, param in (
        ("/embeddings/text", {"texts": ["a", "b"]}, "texts[1]"),
        ("/v2/embed", {"model": "tiny", "texts": ["a", "b"]}, "texts[1]"),
        ("/similarity", {"texts": ["a", "b"]}, "texts[1]"),
        (
            "/v1/multimodalembeddings",
            {"model": "tiny", "inputs": [{"text": "a"}, {"text": "b"}]},
            "inputs[1]",
        ),
    ):
        answer = await Gateway(FakeEngine(failure=too_long)).post(path, body)
        assert (answer.status, answer.json["error"]["param"]) == (400, param)


# Through the application -----------------------------------------------------------------------------------


class SeeingEngine(FakeEngine):
    """Takes whatever it is sent for an image of four tokens."""

    def __init__(self) -> None:
        super().__init__(info_=MULTIMODAL)

    @property
    def image_inputs(self) -> ImageInputs | None:
        return self.info_.images

    async def decode_image(self, file: bytes, *, lane: Lane, group: object = None) -> DecodedImage:
        return DecodedImage(pixels=np.zeros((56, 56, 3), np.uint8), num_tokens=4)


@pytest.mark.parametrize(
    ("fields", "headers", "lane"),
    [
        ({}, {}, Lane.DOCUMENT),
        ({"is_query": True}, {}, Lane.DOCUMENT),
        ({"is_query": False}, {}, Lane.DOCUMENT),
        ({"is_query": True}, {"x-priority": "query"}, Lane.QUERY),
        ({"is_query": True, "images": [PNG]}, {}, Lane.QUERY),
        ({"is_query": False, "images": [PNG]}, {}, Lane.DOCUMENT),
    ],
)
async def test_is_query_does_not_take_a_collection_to_the_query_lane(
    fields: dict[str, Any], headers: dict[str, str], lane: Lane
):
    """The first service's clients send it with everything, also with all pictures of an archive."""
    gateway = Gateway(SeeingEngine())
    answer = await gateway.post("/embeddings/image", {"images": [PNG, PNG], **fields}, headers)
    assert answer.status == 200
    assert gateway.engine.calls[0].lane is lane


async def test_an_instruction_without_effect_is_named_beside_the_answer():
    body = {"images": [PNG], "is_query": False, "instruction": "i", "user": "u"}
    answer = await Gateway(SeeingEngine()).post("/embeddings/image", body)
    assert answer.headers["x-ignored-params"] == "instruction, user"


async def test_cohere_is_told_what_its_images_cost():
    body = {"model": "tiny", "inputs": [{"content": [{"type": "text", "text": "t"}]}, {"image": PNG}]}
    answer = await Gateway(SeeingEngine()).post("/v2/embed", body)
    assert answer.json["meta"]["billed_units"] == {
        "input_tokens": 5,
        "text_tokens": 1,
        "image_tokens": 4,
        "images": 1,
    }
    assert "texts" not in answer.json


async def test_voyage_is_told_the_pixels_that_the_model_read():
    body = {"model": "tiny", "inputs": [{"content": [{"type": "text", "text": "t"}]}, {"image": PNG}]}
    answer = await Gateway(SeeingEngine()).post("/v1/multimodalembeddings", body)
    assert answer.json["usage"] == {
        "text_tokens": 1,
        "image_pixels": 4 * 28 * 28,
        "video_pixels": 0,
        "total_tokens": 5,
    }


async def test_texts_against_images_are_rows_and_columns():
    body = {"texts": ["a", "b", "c"], "images": [PNG, PNG]}
    answer = await Gateway(SeeingEngine()).post("/similarity", body)
    texts = [vector_of(EmbeddingInput(text=text, prompt_name="query")) for text in "abc"]
    image = vector_of(EmbeddingInput(prompt_name="document"))
    assert answer.json["shape"] == [3, 2]
    assert np.allclose(
        answer.json["similarity_matrix"], np.array([texts @ image, texts @ image]).T, atol=1e-6
    )
    images = await Gateway(SeeingEngine()).post("/similarity", {"images": [PNG, PNG, PNG]})
    assert images.json["shape"] == [3, 3]

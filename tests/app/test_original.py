"""The endpoints of the service that came before."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.dialects.original import (
    FusedRequest,
    ImagesRequest,
    SimilarityRequest,
    translate_fused,
    translate_images,
    translate_similarity,
)
from app.wire import Item
from batching import Lane
from model import EmbeddingInput
from tests.app.fakes import INFO, MULTIMODAL, FakeEngine, Gateway, vector_of, with_settings

TEXT_ONLY = {
    "message": "This model embeds text only; images are not supported.",
    "type": "invalid_request_error",
    "code": "unsupported_modality",
}
PNG = "data:image/png;base64,AA=="


async def test_texts_become_embeddings_and_a_dimension():
    answer = await Gateway().post("/embeddings/text", {"texts": ["a", "b"], "instruction": "i"})
    assert answer.status == 200
    assert list(answer.json) == ["embeddings", "dimension"]
    assert answer.json["dimension"] == 8
    expected = [vector_of(EmbeddingInput(text=text, instruction="i")) for text in ("a", "b")]
    assert np.array_equal(np.array(answer.json["embeddings"], dtype=np.float32), expected)


async def test_texts_and_the_openai_endpoint_give_the_same_vectors():
    gateway = Gateway()
    ours = (await gateway.post("/embeddings/text", {"texts": ["a"]})).json["embeddings"][0]
    openais = (await gateway.embed("a")).json["data"][0]["embedding"]
    assert ours == openais


async def test_a_text_that_looks_like_an_image_stays_a_text():
    """Images have a field of their own here."""
    gateway = Gateway()
    assert (await gateway.post("/embeddings/text", {"texts": [PNG]})).status == 200
    assert (await gateway.post("/similarity", {"texts": [PNG]})).status == 200
    assert [call.inputs[0].text for call in gateway.engine.calls] == [PNG, PNG]


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({}, "Missing required parameter: 'texts'.", "texts"),
        ({"texts": ["a", ""]}, "'texts[1]' is an empty string.", "texts[1]"),
        ({"texts": "a"}, "Invalid value for 'texts': expected array, got string.", "texts"),
        ({"texts": ["a", 1]}, "Invalid value for 'texts[1]': expected string, got integer.", "texts[1]"),
        (
            {"texts": ["a"] * 2_049},
            "'texts' holds 2049 inputs; one request may hold 2048 (max_inputs).",
            "texts",
        ),
    ],
)
async def test_a_bad_list_of_texts_is_refused(body: object, message: str, param: str):
    answer = await Gateway().post("/embeddings/text", body)
    assert (answer.status, answer.error["message"], answer.error["param"]) == (400, message, param)


async def test_an_empty_list_is_refused_by_its_own_name():
    for path, body, name in (
        ("/embeddings/text", {"texts": []}, "texts"),
        ("/embeddings/image", {"images": []}, "images"),
        ("/embeddings/fused", {"texts": [], "images": []}, "texts"),
    ):
        answer = await Gateway().post(path, body)
        assert answer.status == 400
        assert answer.error["message"].startswith(f"'{name}' is empty; ")
        assert answer.error["param"] == name


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings/image", {"images": [PNG]}),
        ("/embeddings/fused", {"texts": ["a"], "images": [PNG]}),
        ("/similarity", {"texts": ["a"], "images": [PNG]}),
        ("/similarity", {"images": [PNG]}),
    ],
)
async def test_images_are_refused_on_a_text_model(path: str, body: object):
    answer = await Gateway().post(path, body)
    assert (answer.status, answer.error) == (400, {**TEXT_ONLY, "param": "images[0]"})


@pytest.mark.parametrize("texts", [{"texts": ["a"]}, {"texts": []}, {}])
async def test_images_among_texts_are_refused_before_the_texts_are_looked_at(texts: dict[str, Any]):
    """Ignored, they would leave a vector of half of what was meant."""
    answer = await Gateway().post("/embeddings/text", {**texts, "images": [PNG]})
    assert (answer.status, answer.error) == (400, {**TEXT_ONLY, "param": "images"})
    for nothing in (None, []):
        assert (await Gateway().post("/embeddings/text", {"texts": ["a"], "images": nothing})).status == 200


@pytest.mark.parametrize("path", ["/embeddings/text", "/similarity"])
async def test_parameters_nobody_knows_are_named_here_too(path: str):
    gateway = Gateway()
    answer = await gateway.post(path, {"texts": ["a"], "normalise": False, "images": []})
    assert answer.headers["x-ignored-params"] == "normalise"
    assert gateway.sample("laneway_ignored_params_total") == 1
    assert int(answer.headers["x-ratelimit-remaining-requests"]) > 0


@pytest.mark.parametrize("path", ["/embeddings/text", "/similarity"])
async def test_an_instruction_is_bounded_under_its_own_name(path: str):
    answer = await Gateway().post(path, {"texts": ["a"], "instruction": "i" * 8_001})
    assert (answer.status, answer.error["param"]) == (400, "instruction")
    assert answer.error["message"].startswith("'instruction' has 8001 characters")


async def test_a_model_that_loads_answers_503_here_too():
    gateway = Gateway(FakeEngine(stage="loading weights 43%"))
    answer = await gateway.post("/embeddings/text", {"texts": ["a"]})
    assert (answer.status, answer.error["code"]) == (503, "model_loading")


# Images and pairs ------------------------------------------------------------------------------------------


def test_images_become_items_and_are_blamed_as_images():
    translation = translate_images(
        ImagesRequest(images=["u", "v"], instruction="i", is_query=False), model="tiny"
    )
    request, names = translation.request, translation.names
    assert request.input == [Item(image="u"), Item(image="v")]
    assert (request.model, request.instruction, request.input_type) == ("tiny", "i", "document")
    assert names.name_of("input[1].image") == names.name_of("input[1]") == "images[1]"


@pytest.mark.parametrize(("is_query", "input_type"), [(None, None), (True, "query"), (False, "document")])
def test_is_query_names_the_side(is_query: bool | None, input_type: str | None):
    """Where it is not sent the server's default decides, and without one an instruction counts."""
    images = translate_images(ImagesRequest(images=["u"], is_query=is_query), model="tiny")
    pairs = translate_fused(FusedRequest(texts=["t"], images=["u"], is_query=is_query), model="tiny")
    assert images.request.input_type == pairs.request.input_type == input_type


def test_texts_and_images_are_paired_and_blamed_by_their_half():
    translation = translate_fused(FusedRequest(texts=["a", "b"], images=["u", "v"]), model="tiny")
    assert translation.request.input == [Item(text="a", image="u"), Item(text="b", image="v")]
    names = translation.names
    assert names.name_of("input[1].text") == names.name_of("input[1]") == "texts[1]"
    assert names.name_of("input[1].image") == "images[1]"


async def test_lists_that_are_no_pairs_are_refused_with_their_lengths():
    answer = await Gateway().post("/embeddings/fused", {"texts": ["a", "b", "c"], "images": [PNG]})
    assert answer.status == 400
    assert answer.error["message"] == (
        "'texts' holds 3 and 'images' 1 elements; each text belongs to the image of the same index."
    )
    assert answer.error["param"] == "images"


# Similarity ------------------------------------------------------------------------------------------------


async def test_similarity_compares_every_text_with_every_text():
    answer = await Gateway().post("/similarity", {"texts": ["a", "b", "a"], "images": []})
    matrix = np.array(answer.json["similarity_matrix"])
    assert answer.json["shape"] == [3, 3]
    assert matrix.shape == (3, 3)
    assert np.allclose(np.diag(matrix), 1)
    assert np.isclose(matrix[0, 2], 1)
    assert matrix[0, 1] == matrix[1, 0] == matrix[1, 2]


async def test_texts_are_compared_by_the_vectors_that_the_other_endpoints_give():
    gateway = Gateway()
    body = {"texts": ["a", "b"], "instruction": "i"}
    rows = np.array((await gateway.post("/embeddings/text", body)).json["embeddings"])
    matrix = (await gateway.post("/similarity", body)).json["similarity_matrix"]
    assert np.allclose(matrix, rows @ rows.T, atol=1e-6)


async def test_cosines_are_never_past_one():
    """acos() of 1.0000001 is NaN in the client; and the rows of some models are no unit vectors."""
    gateway = Gateway(FakeEngine(info_=replace(INFO, dimension=384), scale=3.0))
    answer = await gateway.post("/similarity", {"texts": [f"text {number}" for number in range(50)]})
    matrix = np.array(answer.json["similarity_matrix"])
    assert np.allclose(np.diag(matrix), 1, atol=1e-6)
    assert np.abs(matrix).max() <= 1


def test_in_a_comparison_texts_are_queries_and_images_documents():
    data = SimilarityRequest(texts=["a"], images=["u", "v"], instruction="i")
    translation = translate_similarity(data, model="tiny")
    assert translation.request.input == [
        Item(text="a", instruction="i", input_type="query"),
        Item(image="u", input_type="document"),
        Item(image="v", input_type="document"),
    ]
    names = translation.names
    assert names.name_of("input[0].text") == "texts[0]"
    assert names.name_of("input[2].image") == names.name_of("input[2]") == "images[1]"


async def test_nothing_to_compare_is_refused():
    for body in ({}, {"texts": []}, {"texts": None, "images": []}):
        answer = await Gateway().post("/similarity", body)
        assert answer.status == 400
        assert answer.error["message"] == "Send 'texts', 'images' or both, at least one of them."


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings/image", {"images": [PNG] * 4}),
        ("/embeddings/fused", {"texts": ["a"] * 4, "images": [PNG] * 4}),
        ("/similarity", {"texts": ["a"], "images": [PNG] * 4}),
    ],
)
async def test_the_first_image_that_is_too_many_is_blamed_by_its_name(path: str, body: object):
    gateway = Gateway(FakeEngine(info_=MULTIMODAL), with_settings(media={"max_images": 3}))
    answer = await gateway.post(path, body)
    assert (answer.status, answer.error["code"]) == (400, "too_many_images")
    assert answer.error["param"] == "images[3]"


async def test_too_much_to_compare_is_refused():
    answer = await Gateway().post("/similarity", {"texts": ["a"] * 2_000, "images": [PNG] * 100})
    assert answer.error["message"] == (
        "'texts, images' holds 2100 inputs; one request may hold 2048 (max_inputs)."
    )


# Lanes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_texts", "headers", "lane"),
    [(1, {}, Lane.QUERY), (2, {}, Lane.DOCUMENT), (1, {"x-priority": "batch"}, Lane.BATCH)],
)
async def test_texts_wait_where_their_number_or_their_client_says(
    num_texts: int, headers: dict[str, str], lane: Lane
):
    gateway = Gateway()
    await gateway.post("/embeddings/text", {"texts": ["a"] * num_texts}, headers)
    assert gateway.engine.calls[0].lane is lane


# Status ----------------------------------------------------------------------------------------------------


async def test_the_root_tells_status_and_configuration():
    body = (await Gateway().get("/")).json
    assert (body["service"], body["status"], body["stage"]) == ("laneway", "ready", "ready")
    assert body["model"]["embedding_dim"] == 8
    assert body["configuration"]["batching"]["max_batch_size"] == 512
    assert body["configuration"]["limits"]["max_inputs"] == 2048
    assert body["configuration"]["media"]["max_fetches"] == 32
    assert body["configuration"]["images"]["max_image_pixels"] == 40_000_000
    assert {"/v1/embeddings", "/embeddings/fused", "/v2/embed"} <= set(body["endpoints"])


async def test_the_root_tells_the_bounds_in_force():
    """Most settings of passes are left to the device: zero and null would say nothing."""
    engine = FakeEngine()
    batching = (await Gateway(engine).get("/")).json["configuration"]["batching"]
    limits = engine.limits
    assert batching["max_pass_ms"] == limits.max_pass_s * 1000 > 0
    assert batching["max_document_pass_ms"] == limits.max_document_pass_s * 1000
    assert batching["fill_ms"] == limits.fill_s * 1000
    assert batching["max_pass_tokens"] == limits.max_pass_tokens > 0
    assert batching["interruption_share"] == limits.interruption_share > 0


async def test_the_root_answers_while_the_model_loads():
    body = (await Gateway(FakeEngine(stage="loading weights 43%")).get("/")).json
    assert (body["status"], body["stage"], body["model"]) == ("unavailable", "loading weights 43%", None)


async def test_the_root_tells_no_paths_of_the_machine():
    """It is open to whoever reaches the port."""
    assert b"cl100k_path" not in (await Gateway().get("/")).body


async def test_stats_tell_of_passes_queues_and_workers():
    body = (await Gateway().get("/stats")).json
    assert body["batching"] == {
        "passes": 3,
        "items": 12,
        "tokens": 90,
        "mean_pass_items": 4.0,
        "device_s": 0.5,
        "running_passes": 0,
        "failed_passes": 1,
    }
    assert list(body["queues"]) == ["query", "document", "batch"]
    assert body["queues"]["query"]["num_waiting"] == 0
    assert body["workers"][0]["num_restarts"] == 2

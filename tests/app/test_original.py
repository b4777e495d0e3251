"""The endpoints of the service that came before."""

import numpy as np
import pytest

from model import EmbeddingInput
from tests.app.fakes import FakeEngine, Gateway, vector_of

TEXT_ONLY = {
    "message": "This model embeds text only; images are not supported.",
    "type": "invalid_request_error",
    "code": "unsupported_modality",
}


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


async def test_similarity_compares_every_text_with_every_text():
    answer = await Gateway().post("/similarity", {"texts": ["a", "b", "a"], "images": []})
    matrix = np.array(answer.json["similarity_matrix"])
    assert answer.json["shape"] == [3, 3]
    assert matrix.shape == (3, 3)
    assert np.allclose(np.diag(matrix), 1)
    assert np.isclose(matrix[0, 2], 1)
    assert matrix[0, 1] == matrix[1, 0] == matrix[1, 2]


@pytest.mark.parametrize("path", ["/embeddings/text", "/similarity"])
@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({}, "Missing required parameter: 'texts'.", "texts"),
        ({"texts": []}, "'texts' is empty; send at least one text.", "texts"),
        ({"texts": ["a", ""]}, "'texts[1]' is an empty string.", "texts[1]"),
        ({"texts": "a"}, "Invalid value for 'texts': expected array, got string.", "texts"),
        ({"texts": ["a", 1]}, "Invalid value for 'texts[1]': expected string, got integer.", "texts[1]"),
    ],
)
async def test_a_bad_list_of_texts_is_refused(path: str, body: object, message: str, param: str):
    answer = await Gateway().post(path, body)
    assert (answer.status, answer.error["message"], answer.error["param"]) == (400, message, param)


async def test_images_are_refused_on_a_text_model():
    gateway = Gateway()
    for path in ("/embeddings/image", "/embeddings/fused"):
        answer = await gateway.post(path, b"\x89PNG, not even JSON")
        assert answer.status == 400
        assert answer.error == {**TEXT_ONLY, "param": None}


@pytest.mark.parametrize("path", ["/embeddings/text", "/similarity"])
@pytest.mark.parametrize("texts", [{"texts": ["a"]}, {"texts": []}, {}])
async def test_images_beside_texts_are_refused_before_the_texts_are_looked_at(path: str, texts: object):
    """Ignored, they would leave a vector of half of what was meant."""
    answer = await Gateway().post(path, {**texts, "images": ["data:image/png;base64,AA"]})
    assert (answer.status, answer.error) == (400, {**TEXT_ONLY, "param": "images"})
    for nothing in (None, []):
        assert (await Gateway().post(path, {"texts": ["a"], "images": nothing})).status == 200


@pytest.mark.parametrize("path", ["/embeddings/text", "/similarity"])
async def test_parameters_nobody_knows_are_named_here_too(path: str):
    gateway = Gateway()
    answer = await gateway.post(path, {"texts": ["a"], "normalise": False, "images": []})
    assert answer.headers["x-ignored-params"] == "normalise"
    assert gateway.sample("laneway_ignored_params_total") == 1


@pytest.mark.parametrize("path", ["/embeddings/text", "/similarity"])
async def test_an_instruction_is_bounded_under_its_own_name(path: str):
    answer = await Gateway().post(path, {"texts": ["a"], "instruction": "i" * 8_001})
    assert (answer.status, answer.error["param"]) == (400, "instruction")


async def test_the_root_tells_status_and_configuration():
    body = (await Gateway().get("/")).json
    assert (body["service"], body["status"], body["stage"]) == ("laneway", "ready", "ready")
    assert body["model"]["embedding_dim"] == 8
    assert body["configuration"]["batching"]["max_batch_size"] == 512
    assert body["configuration"]["limits"]["max_inputs"] == 2048
    assert "/v1/embeddings" in body["endpoints"]


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

"""The OpenAPI document: what strangers and generators read instead of our code."""

from typing import Any

import pytest

from tests.app.fakes import Gateway

BODIES = {
    "CreateEmbeddingRequest",
    "Item",
    "Message",
    "TextsRequest",
    "ImagesRequest",
    "FusedRequest",
    "SimilarityRequest",
    "CohereEmbedRequest",
    "VoyageMultimodalRequest",
}
EMBEDDING = {"200", "400", "408", "413", "415", "429", "500", "503"}


async def document() -> dict[str, Any]:
    return (await Gateway().get("/schema/openapi.json")).json


@pytest.mark.parametrize("name", sorted(BODIES))
async def test_every_field_of_a_body_says_what_it_does(name: str):
    properties = (await document())["components"]["schemas"][name]["properties"]
    assert [field for field, schema in properties.items() if not schema.get("description")] == []


@pytest.mark.parametrize(
    ("name", "required"),
    [
        ("CreateEmbeddingRequest", ["model"]),
        ("TextsRequest", ["texts"]),
        ("ImagesRequest", ["images"]),
        ("FusedRequest", ["images", "texts"]),
        ("SimilarityRequest", []),
        ("CohereEmbedRequest", ["model"]),
        ("VoyageMultimodalRequest", ["inputs", "model"]),
    ],
)
async def test_what_a_request_cannot_do_without_is_required(name: str, required: list[str]):
    """Decoding is looser, so that a better error can be given; generated clients should not be."""
    assert (await document())["components"]["schemas"][name]["required"] == required


@pytest.mark.parametrize(
    ("path", "statuses", "failure"),
    [
        ("/v1/embeddings", EMBEDDING | {"404"}, "ErrorResponse"),
        ("/embeddings/text", EMBEDDING, "ErrorResponse"),
        ("/embeddings/image", EMBEDDING, "ErrorResponse"),
        ("/embeddings/fused", EMBEDDING, "ErrorResponse"),
        ("/similarity", EMBEDDING, "ErrorResponse"),
        ("/v2/embed", EMBEDDING | {"404"}, "CohereErrorResponse"),
        ("/v1/multimodalembeddings", EMBEDDING | {"404"}, "VoyageErrorResponse"),
    ],
)
async def test_every_answer_of_an_endpoint_is_listed(path: str, statuses: set[str], failure: str):
    responses = (await document())["paths"][path]["post"]["responses"]
    assert set(responses) == statuses
    for status in statuses - {"200"}:
        schema = responses[status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{failure}"}


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/v1/health/ready"])
async def test_not_ready_is_an_answer_of_the_probe(path: str):
    responses = (await document())["paths"][path]["get"]["responses"]
    assert set(responses) == {"200", "503"}
    schema = responses["503"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Unreadiness"}

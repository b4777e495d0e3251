"""``GET /v1/models``: the SDK's list, and what a client may want to know."""

from dataclasses import replace

import pytest

from app.routes.models import IMAGE_FORMATS
from app.settings import MediaUrls
from model import ImageInputs, ImageSpec, ImageTokens
from model.images import decoding
from model.images.spec import ResizeRule
from tests.app.fakes import INFO, FakeEngine, Gateway, with_settings

IMAGES = ImageInputs(
    spec=ImageSpec(
        patch_size=14,
        merge_size=2,
        resizes=(
            ResizeRule(min_tokens=4, max_tokens=16_384, clamps_aspect=True),
            ResizeRule(min_tokens=256, max_tokens=1280),
        ),
    ),
    tokens=ImageTokens(start=(1,), pad=2, end=(3,)),
    max_images=1,
    is_fused_with_text=True,
)


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_the_served_model_is_listed_with_what_one_may_ask_of_it(path: str):
    info = replace(INFO, prompts={"query": "q: "}, default_prompt_name="query")
    answer = await Gateway(FakeEngine(info_=info)).get(path)

    [card] = answer.json["data"]
    assert answer.json["object"] == "list"
    assert card.pop("created") > 1_700_000_000
    assert card == {
        "id": "tiny",
        "object": "model",
        "owned_by": "laneway",
        "embedding_dim": 8,
        "dimensions": [8, 4, 2],
        "max_input_tokens": 16,
        "input_modalities": ["text"],
        "aliases": [
            "text-embedding-3-small",
            "text-embedding-3-large",
            "text-embedding-ada-002",
            "tiny-query",
            "tiny-passage",
            "tiny-document",
        ],
        "prompts": {"query": "q: "},
        "default_prompt_name": "query",
        "is_normalized": True,
        "fingerprint": "f" * 64,
        "source": "tiny",
        "architecture": "BertModel",
        "dtype": "float32",
        "is_packed": True,
        "packing_note": "",
        "license": None,
        "note": None,
        "limits": {
            "max_inputs": 2048,
            "max_request_tokens": 300_000,
            "max_input_chars": 1_000_000,
            "max_body_bytes": 67_108_864,
        },
        "images": None,
        "capabilities": ["embeddings"],
    }


async def test_a_model_of_images_tells_what_it_reads_of_them():
    settings = with_settings(
        media={"media_urls": MediaUrls.OFF, "max_images": 7}, images={"max_image_pixels": 9}
    )
    info = replace(INFO, images=IMAGES, note="Its vectors mean nothing.")
    [card] = (await Gateway(FakeEngine(info_=info), settings).get("/v1/models")).json["data"]
    assert card["input_modalities"] == ["text", "image"]
    assert card["note"] == "Its vectors mean nothing."
    assert card["images"] == {
        "max_per_input": 1,
        "fused": True,
        "part_order": "image_first",
        "min_tokens": 256,
        "max_tokens": 1280,
        "formats": ["jpeg", "png", "webp", "gif"],
        "urls": "off",
        "max_per_request": 7,
        "max_bytes": 20 * 1024 * 1024,
        "max_request_bytes": 64 * 1024 * 1024,
        "max_pixels": 9,
        "min_side": 3,
        "max_side": 65_535,
        "max_aspect_ratio": 200.0,
    }


def test_the_formats_that_are_told_are_those_that_are_decoded():
    assert tuple(name.upper() for name in IMAGE_FORMATS) == decoding._FORMATS


async def test_every_listed_alias_works():
    """A list that promises more than the server keeps is worse than none."""
    gateway = Gateway()
    [card] = (await gateway.get("/v1/models")).json["data"]
    for name in (card["id"], *card["aliases"]):
        assert (await gateway.get(f"/v1/models/{name}")).json["id"] == "tiny"
        answer = await gateway.post("/v1/embeddings", {"model": name, "input": "a"})
        assert answer.status == 200


async def test_a_model_id_may_hold_a_slash():
    gateway = Gateway(FakeEngine(served_name="org/tiny"), with_settings(model={"openai_aliases": False}))
    answer = await gateway.get("/v1/models/org/tiny")
    assert (answer.status, answer.json["id"]) == (200, "org/tiny")


async def test_an_unknown_model_is_not_found():
    answer = await Gateway().get("/v1/models/gpt-4")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize("stage", ["loading", "restarting", "draining", "failed"])
async def test_a_model_that_does_not_answer_is_not_listed(stage: str):
    """People probe the list for readiness."""
    gateway = Gateway(FakeEngine(stage=stage))
    assert (await gateway.get("/v1/models")).json == {"object": "list", "data": []}


@pytest.mark.parametrize("name", ["tiny", "gpt-4"])
async def test_no_model_is_said_to_be_unknown_before_one_is_known(name: str):
    """Which names it has may be read from the checkpoint; nobody asks again after a 404."""
    answer = await Gateway(FakeEngine(stage="downloading 43%")).get(f"/v1/models/{name}")
    assert (answer.status, answer.error["code"]) == (503, "model_loading")

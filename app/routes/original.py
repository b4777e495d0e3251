"""The endpoints of the service that came before: the same paths, the same bodies."""

import dataclasses
from typing import Any

from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from msgspec import Struct

from app.answers import BODY_FAILURES, failure_responses
from app.bodies import GatewayRequest, StrictJSON
from app.dialects.original import (
    FusedRequest,
    ImagesRequest,
    SimilarityRequest,
    TextsRequest,
    similarity_answer,
    translate_fused,
    translate_images,
    translate_similarity,
    translate_texts,
)
from app.dialects.translation import Translation
from app.engine import EngineNotReadyError
from app.outputs import texts_answer
from app.pages import UI
from app.pass_limits import settings_in_force
from app.routes.models import model_card
from app.routes.translated import embed_translated, respond
from app.services import services_of
from app.wire import SimilarityResponse, TextsResponse

TAGS = ["Original"]


@get(
    "/",
    summary="Status and configuration",
    tags=TAGS,
    responses={
        303: ResponseSpec(None, description="Who prefers HTML is sent to the page.", generate_examples=False)
    },
    sync_to_thread=False,
)
def status(request: Request[Any, Any, Any]) -> Response[dict[str, Any] | None]:
    """What is served, how far it is, and the configuration that requests meet. Browsers see a page."""
    # Caches in between keep the two apart.
    varies = {"vary": "accept"}
    if prefers_html(request) and has_page(request):
        headers = {**varies, "location": UI.path}
        return Response(None, status_code=303, media_type="text/plain", headers=headers)
    return Response(status_of(request), headers=varies)


def prefers_html(request: Request[Any, Any, Any]) -> bool:
    """Whether a client would rather have HTML than JSON, as browsers say; who takes anything would not."""
    return request.accept.best_match(["application/json", "text/html"]) == "text/html"


def has_page(request: Request[Any, Any, Any]) -> bool:
    """Whether the page is part of this application."""
    return any(route.path == UI.path for route in request.app.routes)


def status_of(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """The facts of ``GET /``."""
    services = services_of(request)
    engine, settings = services.engine, services.settings
    state = engine.state
    try:
        batching = settings_in_force(settings.batching, engine.limits)
    except EngineNotReadyError:
        batching = settings.batching
    return {
        "service": "laneway",
        "status": "ready" if state.is_ready else "unavailable",
        "stage": state.stage,
        "model": model_card(services) if state.is_ready else None,
        "configuration": {
            "batching": dataclasses.asdict(batching),
            "limits": dataclasses.asdict(settings.limits),
            "media": dataclasses.asdict(settings.media),
            "images": dataclasses.asdict(settings.images),
            "truncate": settings.model.truncate,
            "token_ids": settings.model.token_ids,
            "default_input_type": settings.model.default_input_type,
        },
        "endpoints": sorted(
            route.path for route in request.app.routes if not route.path.startswith("/schema")
        ),
    }


@get("/stats", summary="Batches and queues", tags=TAGS, sync_to_thread=False)
def stats(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """What has run in which passes, what waits in which lane, and how the workers are."""
    statistics = services_of(request).engine.statistics()
    return {
        "batching": {
            "passes": statistics.num_passes,
            "items": statistics.num_items,
            "tokens": statistics.num_tokens,
            "mean_pass_items": round(statistics.mean_pass_items, 3),
            "device_s": round(statistics.device_s, 6),
            "running_passes": statistics.scheduler.num_running_passes,
            "failed_passes": statistics.scheduler.num_failed_passes,
        },
        "queues": {
            str(lane): dataclasses.asdict(state) for lane, state in statistics.scheduler.lanes.items()
        },
        "workers": [dataclasses.asdict(worker) for worker in statistics.workers],
    }


def responses_with(answer: type[Struct], description: str) -> dict[int, ResponseSpec]:
    """What an endpoint answers, for the OpenAPI document."""
    return {
        200: ResponseSpec(answer, description=description, generate_examples=False),
        **failure_responses(*BODY_FAILURES),
    }


@post(
    "/embeddings/text",
    dto=StrictJSON[TextsRequest],
    return_dto=None,
    status_code=200,
    responses=responses_with(TextsResponse, "A vector a text, in order."),
    summary="Embed texts",
    tags=TAGS,
)
async def embed_texts(data: JSONBody[TextsRequest], request: GatewayRequest) -> Response[bytes]:
    """Turn each text into a vector."""
    engine = services_of(request).engine
    translation = translate_texts(data, model=engine.served_name, info=engine.info)
    return await answer_vectors(translation, request, TextsRequest)


@post(
    "/embeddings/image",
    dto=StrictJSON[ImagesRequest],
    return_dto=None,
    status_code=200,
    responses=responses_with(TextsResponse, "A vector an image, in order."),
    summary="Embed images",
    tags=TAGS,
)
async def embed_images(data: JSONBody[ImagesRequest], request: GatewayRequest) -> Response[bytes]:
    """Turn each image into a vector. A model that reads texts only answers 400."""
    translation = translate_images(data, model=services_of(request).engine.served_name)
    return await answer_vectors(translation, request, ImagesRequest)


@post(
    "/embeddings/fused",
    dto=StrictJSON[FusedRequest],
    return_dto=None,
    status_code=200,
    responses=responses_with(TextsResponse, "A vector for each text and its image, in order."),
    summary="Embed texts with images",
    tags=TAGS,
)
async def embed_fused(data: JSONBody[FusedRequest], request: GatewayRequest) -> Response[bytes]:
    """Turn each text, together with the image of the same index, into one vector."""
    translation = translate_fused(data, model=services_of(request).engine.served_name)
    return await answer_vectors(translation, request, FusedRequest)


@post(
    "/similarity",
    dto=StrictJSON[SimilarityRequest],
    return_dto=None,
    status_code=200,
    responses=responses_with(SimilarityResponse, "Cosines, a row for each text."),
    summary="Compare texts and images",
    tags=TAGS,
)
async def similarity(data: JSONBody[SimilarityRequest], request: GatewayRequest) -> Response[bytes]:
    """Compare every text with every image, or all of one kind with each other, by their vectors' cosine."""
    translation = translate_similarity(data, model=services_of(request).engine.served_name)
    wanted, embeddings = await embed_translated(request, translation)
    body = await similarity_answer(embeddings, num_texts=len(data.texts or []))
    return respond(body, request, wanted, embeddings, SimilarityRequest)


async def answer_vectors(
    translation: Translation, request: GatewayRequest, body_type: type[Struct]
) -> Response[bytes]:
    """Embed and answer, alike for texts, images and pairs."""
    wanted, embeddings = await embed_translated(request, translation)
    body = await texts_answer(embeddings, normalize=wanted.normalize)
    return respond(body, request, wanted, embeddings, body_type)

"""The endpoints of the service that came before: the same paths, the same bodies."""

import dataclasses
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from app.answers import BODY_FAILURES, failure_responses
from app.bodies import GatewayRequest, StrictJSON
from app.engine import Embeddings
from app.inputs import EmbeddingRequest, parse_texts, unsupported_modality
from app.outputs import similarity_answer, texts_answer
from app.routes.models import model_card
from app.services import services_of
from app.serving import embed, ignored_params_headers, timing_headers
from app.wire import ErrorResponse, SimilarityRequest, SimilarityResponse, TextsRequest, TextsResponse

TAGS = ["Original"]


@get("/", summary="Status and configuration", tags=TAGS, sync_to_thread=False)
def status(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """What is served, how far it is, and the configuration that requests meet."""
    services = services_of(request)
    engine, settings = services.engine, services.settings
    state = engine.state
    return {
        "service": "laneway",
        "status": "ready" if state.is_ready else "unavailable",
        "stage": state.stage,
        "model": model_card(services) if state.is_ready else None,
        "configuration": {
            "batching": dataclasses.asdict(settings.batching),
            "limits": dataclasses.asdict(settings.limits),
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


@post(
    "/embeddings/text",
    dto=StrictJSON[TextsRequest],
    return_dto=None,
    status_code=200,
    responses={
        200: ResponseSpec(TextsResponse, description="A vector a text.", generate_examples=False),
        **failure_responses(*BODY_FAILURES),
    },
    summary="Embed texts",
    tags=TAGS,
)
async def embed_texts(data: JSONBody[TextsRequest], request: GatewayRequest) -> Response[bytes]:
    """Turn each text into a vector."""
    wanted, embeddings = await embed_texts_of(data, request)
    body = await texts_answer(embeddings, normalize=wanted.normalize)
    return Response(body, media_type="application/json", headers=await headers_of(embeddings, data, request))


@post(
    "/similarity",
    dto=StrictJSON[SimilarityRequest],
    return_dto=None,
    status_code=200,
    responses={
        200: ResponseSpec(SimilarityResponse, description="Cosines.", generate_examples=False),
        **failure_responses(*BODY_FAILURES),
    },
    summary="Compare texts",
    tags=TAGS,
)
async def similarity(data: JSONBody[SimilarityRequest], request: GatewayRequest) -> Response[bytes]:
    """Compare every text with every text by the cosine of their vectors."""
    _, embeddings = await embed_texts_of(data, request)
    body = await similarity_answer(embeddings)
    return Response(body, media_type="application/json", headers=await headers_of(embeddings, data, request))


@post(
    ["/embeddings/image", "/embeddings/fused"],
    # The only answer there is, so the document shows no other.
    status_code=400,
    responses=failure_responses(400),
    summary="Embed images (multimodal models only)",
    tags=TAGS,
    sync_to_thread=False,
)
def embed_images() -> ErrorResponse:
    """Refuse: the served model reads text only."""
    raise unsupported_modality()


async def embed_texts_of(
    data: TextsRequest | SimilarityRequest, request: GatewayRequest
) -> tuple[EmbeddingRequest, Embeddings]:
    """Read and embed the list of texts that both endpoints take."""
    services = services_of(request)
    # Before the texts: a client that sends images alone should read that they are the trouble.
    if data.images is not msgspec.UNSET and bytes(data.images) not in (b"null", b"[]"):
        raise unsupported_modality("images")
    wanted = parse_texts(
        data.texts,
        instruction=data.instruction,
        headers=request.headers,
        info=services.engine.info,
        settings=services.settings,
    )
    return wanted, await embed(request, services, wanted)


async def headers_of(
    embeddings: Embeddings, data: TextsRequest | SimilarityRequest, request: GatewayRequest
) -> dict[str, str]:
    """Where the time went, and which parameters did nothing."""
    ignored = await ignored_params_headers(request, services_of(request), type(data))
    return timing_headers(embeddings) | ignored

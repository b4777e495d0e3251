"""``POST /v1/embeddings``: OpenAI's embeddings endpoint."""

from collections.abc import Mapping

from litestar import Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from app.answers import BODY_FAILURES, failure_responses
from app.bodies import EmbeddingJSON, GatewayRequest, ignored_params_header
from app.errors import TokenArrayError
from app.inputs import LANGCHAIN_HINT, EmbeddingRequest, needs_cl100k, parse, resolve_model
from app.outputs import embedding_answer
from app.services import Services, services_of
from app.serving import embed, ignored_params_headers, rate_limit_headers, timing_headers
from app.tokens import Cl100k, VocabularyError
from app.wire import CreateEmbeddingRequest, CreateEmbeddingResponse

RESPONSES = {
    200: ResponseSpec(
        CreateEmbeddingResponse,
        description="One vector for each input, in input order.",
        generate_examples=False,
    ),
    **failure_responses(404, *BODY_FAILURES),
}


@post(
    ["/v1/embeddings", "/embeddings"],
    dto=EmbeddingJSON,
    return_dto=None,
    status_code=200,
    responses=RESPONSES,
    summary="Create embeddings",
    tags=["OpenAI"],
)
async def create_embedding(
    data: JSONBody[CreateEmbeddingRequest], request: GatewayRequest
) -> Response[bytes]:
    """Turn each input into a vector that represents it."""
    services = services_of(request)
    wanted = await read(data, request.headers, services)
    embeddings = await embed(request, services, wanted)
    body = await embedding_answer(
        embeddings,
        dimensions=wanted.dimensions,
        normalize=wanted.normalize,
        encoding_format=wanted.encoding_format,
        model=services.engine.served_name,
    )
    headers = {
        **timing_headers(embeddings),
        **rate_limit_headers(services, wanted.lane, waited_s=embeddings.queue_s),
        **with_ignored(ignored_params_headers(request, services, CreateEmbeddingRequest), wanted.ignored),
    }
    if wanted.token_encoding is not None:
        headers["x-token-encoding"] = str(wanted.token_encoding)
    return Response(body, media_type="application/json", headers=headers)


async def read(
    data: CreateEmbeddingRequest, headers: Mapping[str, str], services: Services
) -> EmbeddingRequest:
    """Parse a request for the served model, and count what its client does.

    Raises:
        EngineNotReadyError: The model is not loaded yet.
        ModelNotFoundError: The model it names is not served.
        InvalidRequestError: The request is wrong.
    """
    # First, because a model that still loads may not know its names yet, and nobody retries a 404.
    info = services.engine.info
    model_input_type = resolve_model(data.model, services.served_names)
    if headers.get("x-stainless-retry-count", "0") != "0":
        services.metrics.request_retries.inc()
    try:
        wanted = parse(
            data,
            headers=headers,
            model_input_type=model_input_type,
            info=info,
            settings=services.settings,
            cl100k=await vocabulary_for(data, services),
        )
    except TokenArrayError as error:
        services.metrics.token_arrays.labels(error.outcome).inc()
        raise
    if wanted.token_encoding is not None:
        services.metrics.token_arrays.labels(str(wanted.token_encoding)).inc()
    return wanted


def with_ignored(headers: Mapping[str, str], ignored: tuple[str, ...]) -> dict[str, str]:
    """Name what the model does not read before what nobody knows here: a client should see that first."""
    names = [ignored_params_header(ignored), headers.get("x-ignored-params", "")]
    header = ", ".join(filter(None, names))
    return {**headers, "x-ignored-params": header} if header else dict(headers)


async def vocabulary_for(data: CreateEmbeddingRequest, services: Services) -> Cl100k | None:
    """The cl100k_base vocabulary, if the request needs it.

    Raises:
        TokenArrayError: It needs it, and there is none; the message says how to provide it.
    """
    if not needs_cl100k(data, services.settings.model.token_ids):
        return None
    try:
        return await services.cl100k.get()
    except VocabularyError as error:
        raise TokenArrayError(
            f"Token arrays are read as cl100k_base, but {error}. On the server, run `laneway pull cl100k` "
            f"or set cl100k_path; or send strings. {LANGCHAIN_HINT}",
            param="input",
            code="vocabulary_missing",
            outcome="vocabulary_missing",
        ) from error

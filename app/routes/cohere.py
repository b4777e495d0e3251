"""``POST /v2/embed``: Cohere's embeddings endpoint."""

from litestar import Response, post
from litestar.params import JSONBody

from app.bodies import GatewayRequest, StrictJSON
from app.dialects.cohere import (
    CohereEmbedRequest,
    CohereEmbedResponse,
    CohereErrorResponse,
    answer,
    embedding_types,
    translate,
)
from app.routes.translated import answering_as, embed_translated, respond, responses_of
from app.services import services_of


@post(
    "/v2/embed",
    dto=StrictJSON[CohereEmbedRequest],
    return_dto=None,
    status_code=200,
    exception_handlers={Exception: answering_as(CohereErrorResponse)},
    responses=responses_of(CohereEmbedResponse, failure=CohereErrorResponse),
    summary="Create embeddings as Cohere does",
    tags=["Cohere"],
)
async def embed(data: JSONBody[CohereEmbedRequest], request: GatewayRequest) -> Response[bytes]:
    """Turn texts, images, or inputs of both into vectors, in one or more types."""
    info = services_of(request).engine.info
    types = embedding_types(data, dimension=info.dimension)
    wanted, embeddings = await embed_translated(request, translate(data, prompts=info.prompts))
    body = await answer(
        embeddings,
        dimensions=wanted.dimensions,
        normalize=wanted.normalize,
        types=types,
        texts=data.texts,
    )
    return respond(body, request, wanted, embeddings, CohereEmbedRequest)

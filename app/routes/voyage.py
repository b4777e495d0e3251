"""``POST /v1/multimodalembeddings``: Voyage's endpoint for texts and images."""

from litestar import Response, post
from litestar.params import JSONBody

from app.bodies import GatewayRequest, StrictJSON
from app.dialects.voyage import (
    VoyageErrorResponse,
    VoyageMultimodalRequest,
    VoyageMultimodalResponse,
    answer,
    translate,
)
from app.routes.translated import answering_as, embed_translated, respond, responses_of
from app.services import services_of


@post(
    "/v1/multimodalembeddings",
    dto=StrictJSON[VoyageMultimodalRequest],
    return_dto=None,
    status_code=200,
    exception_handlers={Exception: answering_as(VoyageErrorResponse)},
    responses=responses_of(VoyageMultimodalResponse, failure=VoyageErrorResponse),
    summary="Create embeddings as Voyage does",
    tags=["Voyage"],
)
async def embed_multimodal(
    data: JSONBody[VoyageMultimodalRequest], request: GatewayRequest
) -> Response[bytes]:
    """Turn each input, of texts and images in any order, into one vector."""
    engine = services_of(request).engine
    wanted, embeddings = await embed_translated(request, translate(data))
    body = await answer(
        embeddings,
        dimensions=wanted.dimensions,
        normalize=wanted.normalize,
        encoding_format=wanted.encoding_format,
        model=engine.served_name,
        info=engine.info,
    )
    return respond(body, request, wanted, embeddings, VoyageMultimodalRequest)

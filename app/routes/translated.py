"""What the routes of all dialects share: a translation is read, embedded and answered here."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from app.answers import BODY_FAILURES, answer_exception, failure_responses
from app.bodies import GatewayRequest
from app.dialects.translation import Translation
from app.engine import Embeddings
from app.errors import InvalidRequestError
from app.inputs import EmbeddingRequest
from app.lanes import choose_lane
from app.routes.embeddings import read, with_ignored
from app.services import services_of
from app.serving import embed, ignored_params_headers, rate_limit_headers, timing_headers
from app.wire import Error, ErrorResponse

AnswerException = Callable[[Request[Any, Any, Any], Exception], Response[bytes]]


async def embed_translated(
    request: GatewayRequest, translation: Translation
) -> tuple[EmbeddingRequest, Embeddings]:
    """Read and embed a request of another dialect; whatever fails is told in that dialect's names.

    Raises:
        EngineNotReadyError: The model is not loaded yet.
        ModelNotFoundError: The model it names is not served.
        InvalidRequestError: The request is wrong.
        ClientGoneError: The client closed the connection.
        InputFailedError: One input was refused or failed.
    """
    services, names = services_of(request), translation.names
    try:
        wanted = await read(translation.request, request.headers, services)
    except InvalidRequestError as error:
        raise names.renamed(error) from None
    if translation.lane_follows_shape:
        lane = choose_lane(
            priority=translation.request.priority,
            header_priority=request.headers.get("x-priority"),
            sides=frozenset(),
            num_inputs=len(wanted.inputs),
        )
        wanted = replace(wanted, lane=lane)
    wanted = names.renamed_request(wanted)
    return wanted, await embed(request, services, wanted)


def respond(
    body: bytes,
    request: GatewayRequest,
    wanted: EmbeddingRequest,
    embeddings: Embeddings,
    body_type: type[Struct],
) -> Response[bytes]:
    """An answer with what is told beside it: where the time went, what room there is, what was ignored."""
    services = services_of(request)
    headers = {
        **timing_headers(embeddings),
        **rate_limit_headers(services, wanted.lane, waited_s=embeddings.queue_s),
        **with_ignored(ignored_params_headers(request, services, body_type), wanted.ignored),
    }
    return Response(body, media_type="application/json", headers=headers)


def answering_as(failure: Callable[[str, Error], Struct]) -> AnswerException:
    """An exception handler that says the message once more, where the clients of a dialect look for it.

    Args:
        failure: Makes the body of the message and the error in the envelope.
    """

    def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        response = answer_exception(request, error)
        told = msgspec.json.decode(response.content, type=ErrorResponse).error
        response.content = msgspec.json.encode(failure(told.message, told))
        return response

    return answer


def responses_of(answer: type[Struct], *, failure: type[Struct]) -> dict[int, ResponseSpec]:
    """What an endpoint that names its model answers, for the OpenAPI document."""
    failures = failure_responses(404, *BODY_FAILURES)
    return {
        200: ResponseSpec(answer, description="The vectors, in input order.", generate_examples=False),
        **{status: replace(spec, data_container=failure) for status, spec in failures.items()},
    }

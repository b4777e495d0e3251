"""``GET /live``: the last seconds as numbers, for the page and for ``laneway top``."""

from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.exceptions import ValidationException
from litestar.params import QueryParameter

from app.answers import answer_exception, failure_responses
from app.errors import InvalidRequestError
from app.live import MAX_HISTORY_S, LiveSnapshot
from app.services import services_of


def answer_wrong_history(request: Request[Any, Any, Any], _: ValidationException) -> Response[bytes]:
    """Say what the one parameter may be: the framework's own words name neither it nor its bounds."""
    message = f"The parameter history_s must be a whole number of seconds, from 0 to {MAX_HISTORY_S}."
    return answer_exception(request, InvalidRequestError(message, param="history_s"))


@get(
    "/live",
    exception_handlers={ValidationException: answer_wrong_history},
    responses=failure_responses(400),
    summary="The last seconds",
    tags=["Operations"],
)
async def read_live(
    request: Request[Any, Any, Any],
    history_s: Annotated[
        int,
        QueryParameter(
            ge=0,
            le=MAX_HISTORY_S,
            description="Seconds before this one to tell of as `history`, one number a second. 0: none.",
        ),
    ] = 0,
) -> Response[LiveSnapshot]:
    """Lanes, device and requests of the last ten seconds; made to be asked for once a second."""
    services = services_of(request)
    await services.metrics.refresh()
    snapshot = services.live.snapshot(history_s=history_s)
    return Response(snapshot, headers={"cache-control": "no-store"})

"""What machines ask: is it alive, is it ready, what does it count."""

from typing import Any

from litestar import Request, Response, get
from litestar.openapi.datastructures import ResponseSpec

from app.answers import explain
from app.engine import EngineNotReadyError
from app.services import services_of
from app.wire import Readiness, Unreadiness

TAGS = ["Operations"]


@get(
    ["/health/live", "/v1/health/live"],
    summary="Liveness",
    tags=TAGS,
    sync_to_thread=False,
)
def live() -> dict[str, str]:
    """The process answers. Says nothing of the model: a restart would not make it load any faster."""
    return {"status": "alive"}


@get(
    ["/health", "/health/ready", "/v1/health/ready"],
    summary="Readiness",
    tags=TAGS,
    responses={
        503: ResponseSpec(
            Unreadiness,
            description="The model is loading, has failed, or the server is stopping.",
            generate_examples=False,
        )
    },
    sync_to_thread=False,
)
def ready(request: Request[Any, Any, Any]) -> Response[Readiness | Unreadiness]:
    """200 while requests are answered, else 503 with the stage that the model is in."""
    state = services_of(request).engine.state
    if state.is_ready:
        return Response(Readiness(status="ready", stage=state.stage))
    error = explain(EngineNotReadyError(state.stage)).error
    return Response(
        Unreadiness(status="unavailable", stage=state.stage, error=error),
        status_code=503,
        headers={"retry-after": "2"},
    )


@get(["/metrics", "/v1/metrics"], summary="Prometheus metrics", tags=TAGS)
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Every metric, in Prometheus' text format or in OpenMetrics, as the scraper asks."""
    registry = services_of(request).metrics
    await registry.refresh()
    text, content_type = await registry.render(request.headers.get("accept", ""))
    # As a header: to a media type of text Litestar appends a second charset.
    return Response(text, headers={"content-type": content_type})

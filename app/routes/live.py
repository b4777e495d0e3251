"""``GET /live``: the last seconds as numbers, for the page and for ``laneway top``."""

from typing import Any

from litestar import Request, Response, get

from app.live import LiveSnapshot
from app.services import services_of


@get("/live", summary="The last seconds", tags=["Operations"])
async def read_live(request: Request[Any, Any, Any]) -> Response[LiveSnapshot]:
    """Lanes, device and requests of the last ten seconds; made to be asked for once a second."""
    services = services_of(request)
    await services.metrics.refresh()
    return Response(services.live.snapshot(), headers={"cache-control": "no-store"})

"""The documentation page: the OpenAPI document, rendered in the reader's browser by files of our own.

Law: the page loads nothing from elsewhere, and its Content-Security-Policy makes the browser see to it. A
gateway stands in networks without a way out, and a page that asks for a key must not run others' code.
"""

from functools import cache
from importlib.resources import files

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

MEDIA_TYPES = {
    "docs.css": "text/css",
    "docs.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""Every file the page consists of besides itself, in ``app/static``."""

HEADERS = {
    # No inline script or style, no other origin, no form that leaves the page, no frame around it.
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # The files change with the server: ask each time.
    "cache-control": "no-cache",
}


def docs_pages() -> list[HTTPRouteHandler]:
    """The routes of the page; ``/docs`` is its address."""
    return [docs_page, docs_file]


@get("/docs", include_in_schema=False, sync_to_thread=False)
def docs_page() -> Response[bytes]:
    """The page itself."""
    return _answer("docs.html", "text/html")


@get("/docs/{name:str}", include_in_schema=False, sync_to_thread=False)
def docs_file(name: FromPath[str]) -> Response[bytes]:
    """A file of the page."""
    media_type = MEDIA_TYPES.get(name)
    if media_type is None:
        raise NotFoundException(detail="There is no such file. The documentation is at /docs.")
    return _answer(name, media_type)


def _answer(name: str, media_type: str) -> Response[bytes]:
    return Response(static_file(name), media_type=media_type, headers=HEADERS)


@cache
def static_file(name: str) -> bytes:
    """The content of a file in ``app/static``."""
    return files("app").joinpath("static", name).read_bytes()

"""The live page: what the server does now, and a playground, drawn in the browser by files of our own.

Laws: the page loads nothing from elsewhere, and its Content-Security-Policy makes the browser see to it; no
text becomes markup, and the same policy sees to that. The page knows nothing that a client could not ask for.
"""

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from app.docs import HEADERS as DOCS_HEADERS
from app.docs import static_file

UI_PATH = "/ui"

_SCRIPTS = (
    "ui.js", "ui-chart.js", "ui-dom.js", "ui-inputs.js", "ui-live.js", "ui-model.js", "ui-playground.js",
    "ui-results.js", "ui-server.js", "ui-vectors.js",
)  # fmt: skip
MEDIA_TYPES = {
    "ui.css": "text/css",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(_SCRIPTS, "text/javascript"),
}
"""Every file the page consists of besides itself, in ``app/static``."""

HEADERS = {
    **DOCS_HEADERS,
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    # Images that the reader chose are shown from memory.
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # A browser that knows the word throws where a string would become markup (W3C Trusted Types).
    "require-trusted-types-for 'script'; trusted-types 'none'",
}


def ui_pages() -> list[HTTPRouteHandler]:
    """The routes of the page; ``/ui`` is its address."""
    return [ui_page, ui_file]


@get(UI_PATH, include_in_schema=False, sync_to_thread=False)
def ui_page() -> Response[bytes]:
    """The page itself."""
    return _answer("ui.html", "text/html")


@get("/ui/{name:str}", include_in_schema=False, sync_to_thread=False)
def ui_file(name: FromPath[str]) -> Response[bytes]:
    """A file of the page."""
    media_type = MEDIA_TYPES.get(name)
    if media_type is None:
        raise NotFoundException(detail="There is no such file. The page is at /ui.")
    return _answer(name, media_type)


def _answer(name: str, media_type: str) -> Response[bytes]:
    return Response(static_file(name), media_type=media_type, headers=HEADERS)

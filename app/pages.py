"""The pages for people: the documentation of the API, and the live page with its playground.

Laws: both are drawn in the reader's browser by files of our own, and load nothing from elsewhere: a gateway
stands in networks without a way out, and a page that asks for a key must not run others' code. Their
Content-Security-Policy makes the browser see to it. A page knows nothing that a client could not ask for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page, and the files it consists of, all of them in ``app/static``."""

    path: str
    """The page's address; its files lie below it."""
    document: str
    """The HTML file."""
    media_types: Mapping[str, str]
    """Every other file, by name."""
    security_policy: str
    """Its Content-Security-Policy."""

    def handlers(self) -> list[HTTPRouteHandler]:
        """The routes of the page and of its files."""

        @get(self.path, include_in_schema=False, sync_to_thread=False)
        def read_page() -> Response[bytes]:
            return self._answer(self.document, "text/html")

        @get(f"{self.path}/{{name:str}}", include_in_schema=False, sync_to_thread=False)
        def read_file(name: FromPath[str]) -> Response[bytes]:
            media_type = self.media_types.get(name)
            if media_type is None:
                raise NotFoundException(detail=f"There is no such file. The page is at {self.path}.")
            return self._answer(name, media_type)

        return [read_page, read_file]

    def _answer(self, name: str, media_type: str) -> Response[bytes]:
        headers = {
            "content-security-policy": self.security_policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            # The files change with the server: ask each time.
            "cache-control": "no-cache",
        }
        return Response(_static_file(name), media_type=media_type, headers=headers)


DOCS = Page(
    path="/docs",
    document="docs.html",
    media_types={
        "docs.css": "text/css",
        "docs.js": "text/javascript",
        "icon.svg": "image/svg+xml",
    },
    # No inline script or style, no other origin, no form that leaves the page, no frame around it.
    security_policy="default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
)
"""The OpenAPI document, to be read and tried."""

UI = Page(
    path="/ui",
    document="ui.html",
    media_types={
        "ui.css": "text/css",
        "icon.svg": "image/svg+xml",
        **dict.fromkeys(
            (
                "ui.js", "ui-chart.js", "ui-dom.js", "ui-inputs.js", "ui-live.js", "ui-model.js",
                "ui-playground.js", "ui-results.js", "ui-server.js", "ui-vectors.js",
            ),
            "text/javascript",
        ),
    },
    security_policy="default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    # Images that the reader chose are shown from memory.
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # A browser that knows the word throws where a string would become markup (W3C Trusted Types).
    "require-trusted-types-for 'script'; trusted-types 'none'",
)  # fmt: skip
"""What the server does now, and a playground. No text becomes markup on it."""

PAGES = (DOCS, UI)


@cache
def _static_file(name: str) -> bytes:
    return files("app").joinpath("static", name).read_bytes()

"""The table of contents of the application.

Law: this file imports every room of the application, and decides nothing.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import ExternalDocumentation
from litestar.types import ControllerRouterHandler

from app.answers import answer_exception, refuse_unknown_schema_file
from app.bodies import GatewayRequest
from app.budget import BodyBudget
from app.engine import Engine
from app.fetch import Fetcher
from app.images import ImageLoader
from app.lag import watching_lag
from app.live import LiveView
from app.media import ImageIntake
from app.metrics import Metrics
from app.routes import cohere, embeddings, live, models, operations, original, voyage
from app.services import Services
from app.settings import Settings
from app.tokens import Cl100kVocabulary

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


def create_app(
    engine: Engine,
    settings: Settings,
    metrics: Metrics | None = None,
    *,
    view: LiveView | None = None,
    pages: Sequence[ControllerRouterHandler] = (),
    lifespan: Sequence[Lifespan] = (),
    version: str = "unknown",
) -> Litestar:
    """Build the application around an engine, which need not have been started yet.

    Args:
        engine: The served model.
        settings: The resolved configuration.
        metrics: Where things are counted; the outer layer of the server counts in the same place.
        view: Where the last seconds are kept; ``metrics`` tells it what it is told.
        pages: Further routes, such as the documentation page.
        lifespan: What runs around the application, such as starting the engine.
        version: The version of the program, for the OpenAPI document.
    """
    view = view or LiveView(version=version)
    metrics = metrics or Metrics(view)
    metrics.watch(engine)
    fetcher = Fetcher(settings.media)
    budget = BodyBudget(
        settings.limits.max_held_body_bytes,
        max_body_bytes=settings.server.max_body_bytes,
        max_wait_s=settings.server.body_timeout_s,
    )
    services = Services(
        engine=engine,
        settings=settings,
        metrics=metrics,
        live=view,
        cl100k=Cl100kVocabulary(settings.model.cl100k_path),
        intake=ImageIntake(
            ImageLoader(fetcher, settings.media), engine, settings.media, observe=metrics.observe_stage
        ),
        created_s=int(time.time()),
    )
    metrics.watch_images(services.intake)
    metrics.watch_bodies(budget)
    view.watch(engine, aliases=services.served_names[1:], num_in_flight=metrics.num_requests_in_flight)
    app = Litestar(
        route_handlers=[
            embeddings.create_embedding,
            models.list_models,
            models.retrieve_model,
            original.status,
            original.stats,
            original.embed_texts,
            original.embed_images,
            original.embed_fused,
            original.similarity,
            cohere.embed,
            voyage.embed_multimodal,
            operations.live,
            operations.ready,
            operations.metrics,
            live.read_live,
            *pages,
        ],
        state=State(services.as_state()),
        request_class=GatewayRequest,
        middleware=[budget.around],
        request_max_body_size=settings.server.max_body_bytes,
        exception_handlers={Exception: answer_exception},
        lifespan=[
            lambda _app: watching_lag(metrics.event_loop_lag.observe),
            lambda _app: view.remembering(),
            *lifespan,
        ],
        on_shutdown=[fetcher.close],
        openapi_config=OpenAPIConfig(
            title="Laneway",
            version=version,
            description="OpenAI-compatible embeddings that keep queries fast while documents are indexed.",
            external_docs=ExternalDocumentation(
                url="/docs", description="The same as a page to read and try."
            ),
            use_handler_docstrings=True,
            # The document alone: every page that Litestar can render loads its scripts from elsewhere.
            render_plugins=[JsonRenderPlugin()],
            openapi_router=Router(
                "/schema",
                route_handlers=[],
                include_in_schema=False,
                after_request=refuse_unknown_schema_file,
            ),
        ),
        # We log ourselves (app/logs.py); Litestar's default would reconfigure the root logger.
        logging_config=None,
    )
    metrics.expect_posts(route.path for route in app.routes if "POST" in route.methods)
    return app

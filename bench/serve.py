"""The real gateway around a model that the ``laneway`` program does not know: the benchmarks' own.

    python -m bench.serve bench.sleeping:load_eager_7b [the options of laneway serve]

The loader is named by its import path. Tokenizer and folder are those of ``--model``.
"""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import uvloop
from cyclopts import App, Parameter

from app.engine import Engine, image_decoder
from app.lifecycle import serve_until_stopped
from app.logs import configure_logging
from app.main import create_app
from app.metrics import Metrics
from app.observe import ObservedApp
from app.pages import DOCS
from app.server import bind_socket
from app.settings import Settings
from app.sources import Sources
from model.worker import LoadOptions, ProcessWorker, Worker

_DEFAULTS = Settings()


def main(loader: str, argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    return run(loader, settings_of(argv))


def settings_of(argv: Sequence[str]) -> Settings:
    """The options of ``laneway serve``, read as it reads them. Ends the process with one line at a wrong one."""
    app = App(config=Sources().chain)

    @app.default
    def take(*, settings: Annotated[Settings, Parameter(name="*")] = _DEFAULTS) -> Settings:
        return settings

    return app(argv, result_action="return_value")


def run(loader: str, settings: Settings) -> int:
    configure_logging(settings.server.log_level, settings.server.log_format)
    sock = bind_socket(settings.server.host, settings.server.port)

    def open_worker(options: LoadOptions, _slot: int) -> Worker:
        return ProcessWorker(options, pass_timeout_s=settings.model.pass_timeout_s, loader=loader)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        metrics = Metrics()
        engine = Engine(
            settings,
            open_worker=open_worker,
            open_decoder=partial(image_decoder, settings.images),
            on_pass=metrics.observe_pass,
        )
        observed = ObservedApp(
            create_app(engine, settings, metrics=metrics, pages=DOCS.handlers(), version="bench"), metrics
        )
        return runner.run(
            serve_until_stopped(
                engine,
                observed,
                sock,
                settings.server,
                observer=metrics,
                on_ready=lambda: None,
                on_failure=partial(print, file=sys.stderr),
            )
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

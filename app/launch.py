"""Puts the running program together: engine, application, server, console.

Imported by ``laneway serve`` alone, after the port is taken: this is where the heavy imports are.
"""

import asyncio
import gc
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from app.console import Serving, announce, reporting
from app.engine import Engine
from app.gpus import Gpus
from app.lifecycle import FAILED, serve_until_stopped
from app.live import LiveView, live_gpus
from app.logs import LogFile, LogFileError, configure_logging, logs_as_json
from app.main import create_app
from app.malloc import return_large_blocks
from app.media import check_room
from app.metrics import Metrics
from app.observe import ObservedApp
from app.pages import PAGES
from app.prompts import check_default_input_type
from app.server import url_of
from app.settings import Settings
from app.tracing import TracingError, open_tracer
from model import CheckpointError, ModelInfo

logger = logging.getLogger(__name__)


def launch(
    settings: Settings, sock: socket.socket, *, version: str, complain: Callable[[str], object]
) -> int:
    """Serve on the bound socket until told to stop; returns the exit code."""
    import uvloop

    server = settings.server
    log_file = LogFile.from_settings(server)
    try:
        configure_logging(server.log_level, server.log_format, log_file)
        tracer = open_tracer(server.otlp_endpoint, version=version)
    except (LogFileError, TracingError) as error:
        sock.close()
        complain(str(error))
        return FAILED
    if log_file is not None:
        sys.stderr.write(f"laneway: logging to {server.log_file}\n")
    return_large_blocks()
    url = url_of(sock)
    logger.info("listening on %s", url)
    with (
        ExitStack() as at_end,
        reporting() as on_stage,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        if tracer is not None:
            at_end.callback(tracer.close)
        started_s = time.monotonic()
        gpus = Gpus()
        view = LiveView(version=version, read_gpus=lambda: live_gpus(gpus.latest))
        metrics = Metrics(view, gpus=gpus, version=version, query_slo_s=settings.batching.query_slo_ms / 1000)
        engine = Engine.from_settings(
            settings,
            on_stage=on_stage,
            on_pass=metrics.observe_pass,
            accept=partial(check_settings, settings),
        )
        pages = [handler for page in PAGES for handler in page.handlers()]
        app = ObservedApp(
            create_app(engine, settings, metrics, view=view, pages=pages, version=version),
            metrics,
            tracer=tracer,
        )

        def tell_ready() -> None:
            on_stage.close()
            # All that was imported and loaded stays; looking through it at every full collection would
            # only make some request wait.
            gc.collect()
            gc.freeze()
            announce(
                Serving(
                    url=url,
                    is_public=is_public(sock),
                    name=engine.served_name,
                    info=engine.info,
                    worker_pids=tuple(worker.pid for worker in engine.statistics().workers),
                    server=settings.server,
                    limits=settings.limits,
                    version=version,
                    ready_after_s=time.monotonic() - started_s,
                )
            )

        def tell_failure(line: str) -> None:
            on_stage.close()
            # What reads a log of JSON lines stumbles over any other.
            if log_file is not None or logs_as_json(server.log_format):
                logger.error("%s", line)
            if log_file is not None or not logs_as_json(server.log_format):
                complain(line)

        return runner.run(
            serve_until_stopped(
                engine,
                app,
                sock,
                server,
                observer=metrics,
                on_ready=tell_ready,
                on_failure=tell_failure,
            )
        )


def check_settings(settings: Settings, info: ModelInfo) -> None:
    """Refuse at start what would otherwise be found out request by request.

    Raises:
        CheckpointError: A setting cannot work with the loaded model, or on this machine.
    """
    model = settings.model
    check_default_input_type(model.default_input_type, info)
    if model.cl100k_path is not None and not Path(model.cl100k_path).is_file():
        raise CheckpointError(f"cl100k_path: there is no file {model.cl100k_path}")
    check_room(settings.media, info)


def is_public(sock: socket.socket) -> bool:
    """Whether other machines can reach the socket."""
    return not ipaddress.ip_address(sock.getsockname()[0]).is_loopback

"""What a person at the terminal sees while the server comes up: a progress bar, then the banner.

Elsewhere the same facts are log lines, few enough to read: one for each stage, and one every ten seconds
while a stage goes on.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from app.logs import fields
from app.settings import LimitSettings, ServerSettings
from model import ImageInputs, ModelInfo

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
_PERCENT = re.compile(r"\s*(\d{1,3})%$")
_YELLOW, _PLAIN = "\x1b[33m", "\x1b[0m"
RED_SQUARE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFElEQVR42mO8IyfHAANMDEgANwcA"
    "OHIBID2Vy4IAAAAASUVORK5CYII="
)
"""An image of 77 bytes, short enough to be pasted into a shell."""


class StageReporter(Protocol):
    """Is told each stage of loading, such as ``"downloading 43%"``, from any thread; ends with ``close``."""

    def __call__(self, stage: str, /) -> None:
        """The stage is now this one."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


def split_percent(stage: str) -> tuple[str, int | None]:
    """``"downloading 43%"`` is ``("downloading", 43)``; a stage without a number has ``None``."""
    match = _PERCENT.search(stage)
    return (stage[: match.start()], int(match[1])) if match else (stage, None)


class StageLog:
    """Writes stages to the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._name: str | None = None
        self._logged_s = 0.0

    def __call__(self, stage: str, /) -> None:
        """Log the stage, if it is new or the last line is old."""
        name, percent = split_percent(stage)
        now_s = self._clock()
        if name == self._name and now_s - self._logged_s < LOG_EVERY_S:
            return
        self._name, self._logged_s = name, now_s
        logger.info("%s", stage, extra=fields(stage=name, percent=percent))

    def close(self) -> None:
        """Nothing to put away."""


class StageBar:
    """Draws stages as a progress bar that goes away when it is done."""

    def __init__(self) -> None:
        # Imported here: the command line's help is read without it.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._progress.start()

    def __call__(self, stage: str, /) -> None:
        """Redraw the bar."""
        name, percent = split_percent(stage)
        description = stage if percent is not None else name
        self._progress.update(
            self._task,
            description=description,
            completed=percent or 0,
            total=None if percent is None else 100,
        )

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


@contextmanager
def reporting() -> Generator[StageReporter]:
    """A bar where somebody is looking, log lines elsewhere; closed however loading ends."""
    reporter = StageBar() if sys.stderr.isatty() else StageLog()
    try:
        yield reporter
    finally:
        reporter.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What is served, and where."""

    url: str
    """``http://127.0.0.1:8000``: reachable from this machine."""
    is_public: bool
    """Other machines can reach it, too."""
    name: str
    """What clients call the model."""
    info: ModelInfo
    worker_pids: tuple[int | None, ...]
    """Of each worker's process, by the worker's number; ``None``: it is just being started again."""
    server: ServerSettings
    limits: LimitSettings
    version: str
    ready_after_s: float


def announce(serving: Serving) -> None:
    """Tell that the model is ready: the banner to a terminal, one line to a log."""
    if sys.stdout.isatty():
        # https://no-color.org: set to anything but nothing, it asks for text alone.
        sys.stdout.write(banner(serving, in_colour=not os.environ.get("NO_COLOR")) + "\n")
        sys.stdout.flush()
        return
    info, limits = serving.info, serving.limits
    if info.note is not None:
        logger.warning("%s: %s", serving.name, info.note, extra=fields(model=serving.name, note=info.note))
    logger.info(
        "ready after %.1f s: %s on %s/v1, %d dimensions, %s, %d tokens an input; %s; %s",
        serving.ready_after_s,
        serving.name,
        serving.url,
        info.dimension,
        inputs_read(info),
        info.max_tokens,
        request_limits(serving),
        worker_processes(serving.worker_pids),
        extra=fields(
            url=serving.url,
            model=serving.name,
            source=info.source,
            dimension=info.dimension,
            modalities=info.modalities,
            max_tokens=info.max_tokens,
            device=info.device,
            dtype=info.dtype,
            workers=len(serving.worker_pids),
            worker_pids=serving.worker_pids,
            packed=info.is_packed,
            fingerprint=info.fingerprint,
            max_inputs=limits.max_inputs,
            max_request_tokens=limits.max_request_tokens,
            max_body_bytes=serving.server.max_body_bytes,
        ),
    )


def inputs_read(info: ModelInfo) -> str:
    """What an input may hold, for people."""
    return ", ".join(f"{modality}s" for modality in info.modalities)


def request_limits(serving: Serving) -> str:
    """What one request may hold, for people."""
    limits, max_body_bytes = serving.limits, serving.server.max_body_bytes
    return (
        f"{limits.max_inputs:,} inputs, {limits.max_request_tokens:,} tokens, "
        f"{max_body_bytes / 2**20:g} MiB a request"
    )


def worker_processes(pids: Sequence[int | None]) -> str:
    """Which process each worker is, for people: metrics and alerts name a worker by its number."""
    return ", ".join(f"worker {number} has pid {pid}" for number, pid in enumerate(pids) if pid is not None)


def banner(serving: Serving, *, in_colour: bool = False) -> str:
    """Everything needed for a first request, ready to paste.

    Args:
        serving: What is served, and where.
        in_colour: Show what must not be overlooked in yellow.
    """
    info, url = serving.info, serving.url
    num_workers = len(serving.worker_pids)
    workers = "1 worker" if num_workers == 1 else f"{num_workers} workers"
    passes = "packed passes" if info.is_packed else f"padded passes ({info.packing_note})"
    reach = ", open to other machines" if serving.is_public else ""
    rows = {
        "address": f"{url}/v1{reach}",
        "model": f"{serving.name}: {info.dimension} dimensions, {info.max_tokens:,} tokens an input",
        "reads": inputs_read(info) + ("" if info.images is None else f"; {image_tokens(info.images)}"),
        "runs on": f"{info.device} in {info.dtype}, {workers}, {passes}",
        "limits": request_limits(serving),
        "live": f"{url}/ui, or laneway top",
        "docs": f"{url}/docs",
        "metrics": f"{url}/metrics",
    }
    facts = "\n".join(f"  {name:<9}{value}" for name, value in rows.items())
    note = "" if info.note is None else f"\n\n  {_in_yellow(info.note) if in_colour else info.note}"
    return f"""
Laneway {serving.version} is ready after {serving.ready_after_s:.1f} s.

{facts}{note}

Try it:

{first_requests(serving)}

Ctrl+C stops the server.
"""


def image_tokens(images: ImageInputs) -> str:
    """What an image costs, for people."""
    spec = images.spec
    return f"an image is {spec.resizes[-1].min_tokens:,} to {spec.max_tokens:,} tokens"


def _in_yellow(text: str) -> str:
    return f"{_YELLOW}{text}{_PLAIN}"


def first_requests(serving: Serving) -> str:
    """A request for the shell and one for Python; with an image, where the model reads images."""
    name, url = serving.name, serving.url
    shell_input, python_input = '"Hello, world"', '["Hello, world"]'
    if serving.info.images is not None:
        shell_input = f'[{{"text": "a red square"}}, {{"image": "{RED_SQUARE}"}}]'
        python_input = '["a red square", {"image": image}]'
    python = [
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key="none")',
        f'client.embeddings.create(model="{name}", input={python_input})',
    ]
    if serving.info.images is not None:
        python.insert(2, f'image = "{RED_SQUARE}"')
    indented = "\n".join(f"  {line}" for line in python)
    return f"""\
  curl {url}/v1/embeddings -H 'content-type: application/json' \\
    -d '{{"model": "{name}", "input": {shell_input}}}'

or in Python:

{indented}"""

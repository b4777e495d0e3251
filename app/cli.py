"""The ``laneway`` program: what its commands are, and what they say and return.

Laws: a mistake of the caller's is one line on standard error and exit code 2, something that failed is one
line and exit code 1, and neither is ever a traceback. Nothing heavy is imported before a command needs it, so
that ``laneway --help`` is there at once.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn, cast
from urllib.parse import unquote, urlsplit

from cyclopts import App, CycloptsError, Group, Parameter

from app.settings import Settings
from app.sources import Sources, explain

OK = 0
FAILED = 1
USAGE = 2
"""The caller's mistake, as argparse and getopt(1) have it."""
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

HEALTHCHECK_TIMEOUT_S = 5.0
# How often top asks. A reading costs the server half a millisecond.
MIN_INTERVAL_S = 0.2
MAX_INTERVAL_S = 3600.0
DISTRIBUTION = "laneway"

_DEFAULTS = Settings()
_COMMON = Group("Common", sort_key=0)

ModelArgument = Annotated[
    str | None,
    Parameter(
        # Brackets keep it apart from --model, under which name it is one of the settings.
        name="[MODEL]",
        show_env_var=False,
        help=(
            "minilm (the embedded default), tiny-gme (random weights, to try images with), a local folder, "
            "a Hugging Face id, or modelscope:ID."
        ),
    ),
]
ConfigOption = Annotated[
    Path | None, Parameter(group=_COMMON, help="TOML file with settings, by the names of the options below.")
]
AllSettings = Annotated[Settings, Parameter(name="*")]
HiddenSettings = Annotated[Settings, Parameter(name="*", show=False)]


class CommandError(Exception):
    """The command failed. The message is one line for the person who gave it."""


def main() -> NoReturn:
    """The console script."""
    leave(run(sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """End the process, whatever threads it still has.

    A hub's client downloads in a thread pool, and Python joins the threads of pools at exit: told to stop,
    the program would go on until the download is whole.
    """
    if threading.active_count() > 1:  # daemons, too: a pool that a daemon made is joined like any other
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    sources = Sources()
    app = build_app(sources)
    try:
        refuse_foreign_app()
        code = app(
            _with_bare_device(argv) or ["--help"],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        return _complain(explain(error), USAGE)
    except CommandError as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code if isinstance(code, int) else OK


def _with_bare_device(argv: Sequence[str]) -> list[str]:
    """``laneway check --device`` asks for the device; with a value, ``--device`` is the setting."""
    words = list(argv)
    if words[:1] == ["check"]:
        for index, word in enumerate(words):
            is_bare = index + 1 == len(words) or words[index + 1].startswith("-")
            if word == "--device" and is_bare:
                words[index] = "--measure"
    return words


def build_app(sources: Sources) -> App:
    """The commands over one chain of settings."""
    app = App(
        name="laneway",
        help="An OpenAI-compatible embeddings gateway: search queries stay fast while documents are indexed.",
        help_epilogue=(
            "Every option has a twin in the environment (LANEWAY_PORT) and in the TOML file (port). "
            "Flags win over the environment, the environment over the file."
        ),
        version=version,
        config=sources.chain,
    )
    app.command(serve)
    app.command(_check_command(sources), name="check")
    app.command(healthcheck)
    app.command(pull)
    app.command(top)
    return app


def version() -> str:
    """The installed version."""
    return metadata.version(DISTRIBUTION)


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"laneway: {message}\n")
    return code


def refuse_foreign_app() -> None:
    """Make sure that the code that runs is the distribution's own.

    Our top-level package has a plain name. Another distribution with one of the same name overwrites it on
    installation, and ``python -m`` finds one in the working directory first.

    Raises:
        CommandError: ``app`` is not where the distribution says.
    """
    here = Path(__file__).resolve()
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise CommandError(
            f"{here.parent} runs without being installed; run `make install` first."
        ) from error
    if not is_our_file(here, distribution):
        raise CommandError(
            f"the package app in {here.parent} is not Laneway's own: another package or folder of that name "
            "is in its way. Install Laneway in an environment of its own, and start it as `laneway`."
        )


def is_our_file(path: Path, distribution: metadata.Distribution) -> bool:
    """Whether the distribution installed the file, or is an editable install of the folder that it is in."""
    name = f"{path.parent.name}/{path.name}"
    if any(
        str(file) == name and Path(str(file.locate())).resolve() == path for file in distribution.files or ()
    ):
        return True
    # An editable install is a pointer to a folder (PEP 610).
    origin: dict[str, object] = json.loads(distribution.read_text("direct_url.json") or "{}")
    folder = urlsplit(str(origin.get("url", "")))
    return folder.scheme == "file" and path.is_relative_to(Path(unquote(folder.path)).resolve())


# serve -----------------------------------------------------------------------------------------------------


def serve(
    model: ModelArgument = None,
    /,
    *,
    config: ConfigOption = None,
    settings: AllSettings = _DEFAULTS,
) -> int:
    """Serve a model over HTTP.

    The port opens at once; /health/ready turns 200 when the model answers. SIGTERM and Ctrl+C let requests in
    flight finish, and end the program with exit code 0.
    """
    from app.server import BindError, bind_socket

    try:
        sock = bind_socket(settings.server.host, settings.server.port)
    except BindError as error:
        raise CommandError(str(error)) from error
    from app.launch import launch

    return launch(settings, sock, version=version(), complain=lambda line: _complain(line, FAILED))


# check -----------------------------------------------------------------------------------------------------


def _check_command(sources: Sources) -> Callable[..., int]:
    def check(
        model: ModelArgument = None,
        /,
        *,
        measure: Annotated[
            bool,
            Parameter(
                name="--measure",
                negative=(),
                group=_COMMON,
                help="Load the model, and print what passes take on this machine. The same: --device, bare.",
            ),
        ] = False,
        config: ConfigOption = None,
        settings: AllSettings = _DEFAULTS,
    ) -> int:
        """Print the settings as they hold, and where each of them comes from."""
        if measure:
            return _measure(settings)
        resolved = sources.resolved(settings)
        shown = [(each.name, _as_toml(each.value), each.origin) for each in resolved]
        widths = [max(len(row[column]) for row in shown) for column in range(2)]
        for name, value, origin in shown:
            sys.stdout.write(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}\n")
        return OK

    return check


def _measure(settings: Settings) -> int:
    from app.console import reporting
    from app.device_check import check_device, describe
    from app.logs import configure_logging
    from model import ModelError

    configure_logging(settings.server.log_level, settings.server.log_format)
    with reporting() as on_stage:
        try:
            measured = check_device(settings, on_stage)
        except ModelError as error:
            raise CommandError(str(error)) from error
    sys.stdout.write("\n".join(describe(measured)) + "\n")
    return OK


def _as_toml(value: object) -> str:
    match value:
        case None:
            return "(none)"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case tuple():
            return f"[{', '.join(map(_as_toml, cast('tuple[object, ...]', value)))}]"
        case _:
            return str(value)


# healthcheck -----------------------------------------------------------------------------------------------


def healthcheck(*, config: ConfigOption = None, settings: HiddenSettings = _DEFAULTS) -> int:
    """Ask the running server whether its model is ready: exit code 0 if so, else 1.

    It takes the options of serve, and reads the same file and environment to find the address.
    """
    from app.health import ask_readiness

    answer = ask_readiness(settings.server.host, settings.server.port, timeout_s=HEALTHCHECK_TIMEOUT_S)
    sys.stdout.write(answer.line + "\n")
    return OK if answer.is_ready else FAILED


# pull ------------------------------------------------------------------------------------------------------

CL100K = "cl100k"


def pull(
    model: ModelArgument = None,
    /,
    *,
    config: ConfigOption = None,
    settings: HiddenSettings = _DEFAULTS,
) -> int:
    """Download a model into the cache, to serve it later without a network.

    "laneway pull cl100k" fetches the vocabulary of OpenAI's token ids, which LangChain sends by default.
    It takes the options of serve; --revision names a branch, tag or commit.
    """
    from app.logs import configure_logging

    configure_logging(settings.server.log_level, settings.server.log_format)
    path = _pull_cl100k() if settings.model.model.lower() == CL100K else _pull_model(settings)
    sys.stdout.write(f"{path}\n")
    return OK


def _pull_cl100k() -> Path:
    from app.tokens import VocabularyError, fetch_cl100k

    try:
        return fetch_cl100k()
    except VocabularyError as error:
        raise CommandError(str(error)) from error


def _pull_model(settings: Settings) -> Path:
    from app.console import reporting
    from model import ModelError, find_checkpoint

    with reporting() as on_stage:
        try:
            checkpoint = find_checkpoint(
                settings.model.model,
                revision=settings.model.revision,
                on_stage=on_stage,
            )
        except ModelError as error:
            raise CommandError(str(error)) from error
    return checkpoint.folder


# top -------------------------------------------------------------------------------------------------------


def _check_interval(_: object, value: float) -> None:
    if not MIN_INTERVAL_S <= value <= MAX_INTERVAL_S:
        raise ValueError(f"It must be between {MIN_INTERVAL_S:g} and {MAX_INTERVAL_S:g} seconds.")


def top(
    url: Annotated[
        str | None,
        Parameter(help="The server, such as 127.0.0.1:8000. Default: where serve would listen, by --port."),
    ] = None,
    *,
    interval: Annotated[
        float, Parameter(help="Seconds from one reading to the next.", validator=_check_interval)
    ] = 1.0,
    api_key: Annotated[str | None, Parameter(help="The key, if the server wants one.")] = None,
    once: Annotated[bool, Parameter(help="Print one reading as plain text, and end.", negative=())] = False,
    config: ConfigOption = None,
    settings: HiddenSettings = _DEFAULTS,
) -> int:
    """Watch a running server in the terminal: lanes, latencies, devices. The key q quits.

    Where the output is no terminal, one reading is printed as with --once. It takes the options of serve, and
    reads the same file and environment to find the address.
    """
    from app.top import Server
    from app.top import top as watch

    server = Server(url=url or _url_of(settings), api_key=api_key)
    return watch(server, interval_s=interval, once=once)


def _url_of(settings: Settings) -> str:
    """Where a server with these settings is reached from this machine."""
    host, port = settings.server.host, settings.server.port
    if port == 0:
        raise CommandError("the system chooses which port 0 is; give the server's URL")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

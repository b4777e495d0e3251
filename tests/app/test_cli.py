"""The program from the outside: exit codes, lines, and what a signal does."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import cast
from urllib.request import urlopen

import pytest

from app import cli
from app.cli import is_our_file, run
from app.health import ask_readiness
from app.server import bind_socket
from tests.app.running import taken_socket

ROOT = Path(__file__).parents[2]


# The program itself ----------------------------------------------------------------------------------------


def laneway(*argv: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program as its console script does, in a process of its own."""
    command = [sys.executable, "-P", "-c", "from app.cli import main; main()", *argv]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **env}
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_the_commands_and_loads_nothing_heavy():
    """People ask for help often, and at a prompt; torch alone takes seconds."""
    script = (
        "import sys, app.cli\n"
        "code = app.cli.run(['--help'])\n"
        "heavy = {'torch', 'litestar', 'transformers', 'numpy', 'uvicorn', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in ("serve", "check", "healthcheck", "pull", "top", "--version"):
        assert command in done.stdout


def test_help_is_there_at_once():
    """Under 0.4 s on a quiet machine; the fastest of three, because tests run on busy ones."""

    def seconds() -> float:
        started = time.perf_counter()
        assert laneway("--help").returncode == 0
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 0.8


def test_the_help_of_serve_shows_every_option_with_its_variable_and_default(
    capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["serve", "--help"]) == 0
    shown = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert (
        "--port INT Port to listen on; 0 takes a free one. [env var: LANEWAY_PORT] [default: 8000]" in shown
    )
    assert "[choices: auto, float32, bfloat16, float16] [env var: LANEWAY_DTYPE] [default: auto]" in shown
    assert (
        "[MODEL] minilm (the embedded default), tiny-gme (random weights, to try images with), a local"
        in shown
    )
    assert "[choices: sequential, mrope] [env var: LANEWAY_ROPE] [default: sequential]" in shown


def test_the_version_is_the_distributions():
    assert laneway("--version").stdout == f"{metadata.version('laneway')}\n"


def test_an_unknown_command_is_one_line_with_a_suggestion(capsys: pytest.CaptureFixture[str]):
    assert run(["srve"]) == 2
    line = 'laneway: Unknown command "srve". Did you mean "serve"? Available commands: serve, check, healthcheck, pull, top.\n'
    assert capsys.readouterr().err == line


def test_somebody_elses_app_folder_does_not_shadow_ours(tmp_path: Path):
    """The console script does not put the working directory on the path; this holds that down."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the wrong app')")
    done = laneway("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_foreign_app_package_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    """Two distributions with a package of one name overwrite each other without a word from pip."""
    assert is_our_file(Path(cli.__file__), metadata.distribution("laneway"))
    assert not is_our_file(tmp_path / "app" / "cli.py", metadata.distribution("laneway"))
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "app" / "cli.py"))
    assert run(["check"]) == 1
    assert capsys.readouterr().err == (
        f"laneway: the package app in {tmp_path / 'app'} is not Laneway's own: another package or folder of that name "
        "is in its way. Install Laneway in an environment of its own, and start it as `laneway`.\n"
    )


# healthcheck -----------------------------------------------------------------------------------------------


class Ready(BaseHTTPRequestHandler):
    """Answers as told by the server object."""

    def do_GET(self) -> None:
        status, body = self.server.answer if self.path == "/health/ready" else (404, b"")  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def gateway() -> Generator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Ready)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "code", "line"),
    [
        ((200, b'{"status":"ready"}'), 0, "ready"),
        ((503, b'{"status":"loading","stage":"downloading 43%"}'), 1, "not ready: downloading 43%"),
        ((503, b"not json"), 1, "not ready: status 503"),
        ((404, b"[]"), 1, "not ready: status 404"),
    ],
)
def test_healthcheck_tells_the_stage(
    gateway, capsys: pytest.CaptureFixture[str], monkeypatch, answer, code, line
):
    gateway.answer = answer
    monkeypatch.setenv("LANEWAY_PORT", str(gateway.server_port))
    # What a container is configured with: the address that means all of them.
    monkeypatch.setenv("LANEWAY_HOST", "0.0.0.0")
    assert run(["healthcheck"]) == code
    assert capsys.readouterr().out == line + "\n"


def test_healthcheck_says_that_nobody_listens(capsys: pytest.CaptureFixture[str]):
    with taken_socket() as taken:
        port = taken.getsockname()[1]
        assert run(["healthcheck", "--port", str(port)]) == 1
    assert capsys.readouterr().out == f"not ready: 127.0.0.1 port {port}: [Errno 111] Connection refused\n"


def test_healthcheck_cannot_ask_port_0():
    answer = ask_readiness("127.0.0.1", 0, timeout_s=1)
    assert answer.line == "not ready: port 0 was chosen by the system; give --port"


# pull ------------------------------------------------------------------------------------------------------


def test_pull_prints_where_the_model_lies(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert run(["pull", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"


def test_pull_of_something_that_is_no_checkpoint_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert run(["pull", str(tmp_path / "nothing")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"laneway: there is no folder {tmp_path / 'nothing'};")
    assert captured.err.count("\n") == 1


def test_pull_builds_the_tiny_model(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(["pull", "tiny-gme"]) == 0
    folder = Path(capsys.readouterr().out.rstrip())
    assert folder.parent == tmp_path / "laneway"
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["cl100k", "CL100K"])
def test_pull_cl100k_fetches_the_vocabulary(
    capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path, name: str
):
    from app import tokens

    monkeypatch.setattr(tokens, "fetch_cl100k", lambda: tmp_path / "cl100k_base.tiktoken")
    assert run(["pull", name]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cl100k_base.tiktoken'}\n"


# serve -----------------------------------------------------------------------------------------------------


@pytest.fixture
def started() -> Generator[list[subprocess.Popen[str]]]:
    """Processes that are ended with the test, whatever happens in it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


PROGRAM = "from app.cli import main; main()"


def serve(started: list[subprocess.Popen[str]], *argv: str, program: str = PROGRAM) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", program, "serve", "--port", "0", *argv]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    return process


def read_until(process: subprocess.Popen[str], start: str) -> dict[str, object]:
    """The first log line whose message begins so."""
    assert process.stderr is not None
    seen: list[str] = []
    for text in process.stderr:
        seen.append(text)
        if text.startswith("{") and (line := json.loads(text))["message"].startswith(start):
            return line
    raise AssertionError(f"no line begins with {start!r}: {''.join(seen)}")


def test_a_server_that_is_told_to_stop_exits_with_0(started):
    """systemd and Kubernetes take it for success, with no list of allowed codes."""
    process = serve(started)
    ready = read_until(process, "ready after")
    assert ready["dimension"] == 384
    assert len(cast("list[int]", ready["worker_pids"])) == ready["workers"]
    assert ask_readiness("127.0.0.1", int(str(ready["url"]).rpartition(":")[2]), timeout_s=10).is_ready
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    # A log that ends with "draining" leaves open whether it ever came to its end.
    draining, stopped = [json.loads(line) for line in errors.splitlines()][-2:]
    assert draining["message"] == "draining"
    assert stopped["message"].startswith("stopped in ")
    assert (stopped["logger"], stopped["cut_off"]) == ("app.lifecycle", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_server_that_is_stopped_while_it_loads_exits_with_0(started, number: signal.Signals):
    process = serve(started)
    read_until(process, "looking for the model")
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


HANGING_DOWNLOAD = f"""
import threading
from concurrent.futures import ThreadPoolExecutor

import app.engine

def find_checkpoint(source, **options):
    options["on_stage"]("downloading 43%")
    ThreadPoolExecutor().submit(threading.Event().wait).result()

app.engine.find_checkpoint = find_checkpoint
{PROGRAM}
"""
"""As hub clients download: in threads of a pool, which Python joins before it exits."""


def test_the_port_answers_while_the_model_loads_and_a_stop_does_not_wait_for_it(started):
    """Liveness must not fail during a download of an hour, and a stop must not take that long."""
    process = serve(started, program=HANGING_DOWNLOAD)
    url = str(read_until(process, "listening on")["message"]).removeprefix("listening on ")
    read_until(process, "downloading 43%")
    with urlopen(f"{url}/health/live", timeout=10) as answer:
        assert answer.status == 200
    readiness = ask_readiness("127.0.0.1", int(url.rpartition(":")[2]), timeout_s=10)
    assert readiness.line == "not ready: downloading 43%"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_an_input_type_that_the_model_does_not_know_ends_the_start(started):
    process = serve(started, "--default-input-type", "nonsense", "--workers", "1")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    line = json.loads(errors.splitlines()[-1])
    assert (line["level"], line["message"]) == (
        "error",
        "default_input_type: 'nonsense' is not an input type of this model. Allowed: query, document, search_query, "
        "retrieval.query, retrieval_query, passage, search_document, retrieval.passage, retrieval_document, "
        "corpus, text.",
    )


def test_a_model_that_cannot_be_loaded_is_one_line_and_1(started, tmp_path: Path):
    process = serve(started, str(tmp_path), "--log-format", "text")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"laneway: {tmp_path} holds neither a config.json nor a modules.json")
    assert "Traceback" not in errors


def test_a_log_of_json_lines_holds_no_other_even_if_the_model_cannot_be_loaded(started, tmp_path: Path):
    """What collects logs drops or garbles a line that is no JSON: the reason of all things."""
    process = serve(started, str(tmp_path))
    _, errors = process.communicate(timeout=60)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert lines[-1]["level"] == "error"
    assert lines[-1]["message"].startswith(f"{tmp_path} holds neither a config.json nor a modules.json")


def test_the_tiny_model_says_that_its_vectors_mean_nothing(started):
    process = serve(started, "tiny-gme", "--workers", "1")
    warning = read_until(process, "tiny-gme: ")
    assert warning["level"] == "warning"
    assert (
        warning["note"] == "Its weights are random: the vectors mean nothing. It is for trying the endpoints."
    )
    ready = read_until(process, "ready after")
    assert ready["modalities"] == ["text", "image"]


def test_a_port_in_use_is_one_line_and_1(capsys: pytest.CaptureFixture[str]):
    with bind_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"laneway: Port {port} on 127.0.0.1 is in use: stop the program that has it, "
        "or choose another with --port (0 takes a free one).\n"
    )

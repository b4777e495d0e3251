"""How a process of ours is started, and what is said of its end."""

import os
import signal
from pathlib import Path

import pytest

from model.processes import describe_exit, start_python


@pytest.mark.parametrize(
    ("returncode", "description"),
    [
        (0, "exited with code 0"),
        (78, "exited with code 78 (it was misconfigured)"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-signal.SIGSEGV, "was killed by SIGSEGV (a library is broken)"),
        (-50, "was killed by signal 50"),
    ],
)
def test_how_a_process_ended_is_said_in_words(returncode: int, description: str):
    reasons = {78: "it was misconfigured", -signal.SIGSEGV: "a library is broken"}
    assert describe_exit(returncode, reasons) == description


def test_a_process_sees_our_packages_and_not_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A ``json.py`` of a stranger's must not be what it imports; relative entries mean what they mean here."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "ours.py").write_text("ANSWER = 42")
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("packages")
    reading, writing = os.pipe()
    program = """
import os, ours
os.write(arguments["fd"], f"{ours.ANSWER} {os.environ.get('TOKEN')} {os.environ['COLOUR']}".encode())
"""
    environment = {"COLOUR": "red"}
    monkeypatch.setenv("TOKEN", "secret")
    process = start_python(program, {"fd": writing}, fds=[writing], environment=environment)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"42 None red"
    assert process.wait(30) == 0


def test_ctrl_c_is_ignored_from_the_first_line_on():
    program = "import os\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(7)"
    assert start_python(program, None, fds=[], environment={}).wait(30) == 7

"""The README's blocks run as they stand, against the real server; nothing in them but its address is replaced."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.conftest import LANEWAY, RunningServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
URL = "http://127.0.0.1:8000"

# What the lines that make an object and no request are good for.
USE = """
if "embeddings" in globals():
    embed = getattr(embeddings, "embed_query", None) or embeddings.get_query_embedding
    print(len(embed("Where do great apes live?")))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def is_to_install(block: str) -> bool:
    return block.startswith("git clone")


def is_to_serve(block: str) -> bool:
    return block.startswith(".venv/bin/laneway serve")


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split()[1])
def test_a_python_block_gets_vectors(block: str, server: RunningServer) -> None:
    assert URL in block
    done = subprocess.run(
        [sys.executable, "-c", block.replace(URL, server.root) + USE],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ.copy(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "384"


def test_the_python_blocks_are_the_three_clients() -> None:
    assert [block.split()[1] for block in blocks("python")] == [
        "openai",
        "langchain_openai",
        "llama_index.embeddings.openai_like",
    ]


def test_the_curl_block_gets_a_vector(server: RunningServer) -> None:
    [block] = [block for block in blocks("bash") if block.startswith("curl")]
    done = subprocess.run(
        ["bash", "-c", block.replace(URL, server.root)], capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout)["data"][0]["embedding"]) == 384


def serve_lines() -> list[str]:
    return [line for block in blocks("bash") if is_to_serve(block) for line in block.splitlines()]


@pytest.mark.parametrize("line", serve_lines())
def test_a_line_that_serves_a_model_has_options_that_exist(line: str) -> None:
    """Without the download: `check` reads the same options, and ends."""
    program, command, *arguments = shlex.split(line, comments=True)
    assert (program, command) == (".venv/bin/laneway", "serve")
    done = subprocess.run(
        [str(LANEWAY), "check", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert f'"{arguments[0]}"' in done.stdout


def test_every_block_is_run_or_is_the_installation() -> None:
    opened = re.findall(r"^```(\w*)$", README, flags=re.MULTILINE)[::2]
    assert set(opened) == {"python", "bash"}
    [install] = [block for block in blocks("bash") if is_to_install(block)]
    assert install.splitlines()[1:] == ["make serve"]
    assert len(blocks("bash")) == 3
    assert len(serve_lines()) == 3

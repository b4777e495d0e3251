"""The README's blocks run as they stand, against the real server; nothing in them but its address is replaced."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import LANEWAY, RunningServer

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


def is_to_prepare(block: str) -> bool:
    return block.startswith("pip install")


def dimension_for(block: str) -> int:
    """Of the model that the block is written for."""
    return 64 if reads_images(block) else 384


def reads_images(block: str) -> bool:
    return "tiny-gme" in block or "/embeddings/fused" in block


@pytest.fixture
def root(block: str, request: pytest.FixtureRequest) -> str:
    """The address of a server that serves what the block asks for."""
    running: RunningServer = request.getfixturevalue("image_server" if reads_images(block) else "server")
    return running.root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where somebody who reads along has made a picture."""
    [block] = filter(is_to_prepare, blocks("bash"))
    [_, line] = block.splitlines()
    program, *arguments = shlex.split(line)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True, cwd=tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split()[1])
def test_a_python_block_gets_vectors(block: str, root: str, folder: Path) -> None:
    assert URL in block
    done = subprocess.run(
        [sys.executable, "-c", block.replace(URL, root) + USE],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ.copy(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(dimension_for(block))


def test_the_python_blocks_are_one_for_each_client() -> None:
    assert [block.split()[1] for block in blocks("python")] == [
        "openai",
        "langchain_openai",
        "llama_index.embeddings.openai_like",
        "base64",
        "openai",
        "cohere",
        "voyageai",
    ]


def curl_blocks() -> list[str]:
    return [block for block in blocks("bash") if block.startswith("curl")]


@pytest.mark.parametrize("block", curl_blocks(), ids=lambda block: block.split()[1].removeprefix(URL))
def test_a_curl_block_gets_a_vector(block: str, root: str, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", block.replace(URL, root)], capture_output=True, text=True, check=True, cwd=folder
    )
    answer = json.loads(done.stdout)
    [vector] = (
        answer["embeddings"] if "embeddings" in answer else [one["embedding"] for one in answer["data"]]
    )
    assert len(vector) == dimension_for(block)


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
    assert len(curl_blocks()) == 3
    [prepare] = filter(is_to_prepare, blocks("bash"))
    others = [block for block in blocks("bash") if block not in (install, prepare, *curl_blocks())]
    assert all(is_to_serve(block) for block in others)
    assert len(serve_lines()) == 7

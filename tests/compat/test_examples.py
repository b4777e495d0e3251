"""The examples run as they stand, against the real server, and find the right answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import RunningServer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["openai_sdk.py", "langchain_search.py", "llamaindex_search.py"])
def test_an_example_finds_the_apes(name: str, server: RunningServer) -> None:
    output = subprocess.run(
        [sys.executable, str(EXAMPLES / name), server.base_url],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ.copy(),
    ).stdout
    best, *others = output.strip().splitlines()
    assert best.endswith("Gorillas live in the forests of central Africa.")
    assert len(others) == 2


def test_the_image_example_ranks_images_and_says_when_that_means_nothing(image_server: RunningServer) -> None:
    output = subprocess.run(
        [sys.executable, str(EXAMPLES / "image_search.py"), image_server.base_url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    *ranking, note = output.strip().splitlines()
    scores, names = zip(*(line.split("  ") for line in ranking), strict=True)
    assert sorted(names) == ["a blue square", "a green circle", "a red circle"]
    assert sorted(map(float, scores), reverse=True) == list(map(float, scores))
    assert len(set(scores)) == 3
    assert note.startswith("tiny-gme: Its weights are random: the vectors mean nothing.")


def test_the_curl_example_answers_in_openais_format(server: RunningServer) -> None:
    output = subprocess.run(
        ["bash", str(EXAMPLES / "embed.sh"), server.base_url], capture_output=True, text=True, check=True
    ).stdout
    answer = json.loads(output)
    assert answer["object"] == "list"
    assert [len(one["embedding"]) for one in answer["data"]] == [384, 384]


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "openai_sdk.py",
        "langchain_search.py",
        "llamaindex_search.py",
        "image_search.py",
        "embed.sh",
    }

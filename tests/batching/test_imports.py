"""The room stands alone: who batches needs no torch, no HTTP and no package at all."""

import json
import subprocess
import sys
from pathlib import Path

import batching

_ROOT = Path(__file__).parents[2]


def test_importing_the_room_loads_nothing_but_the_standard_library_and_itself():
    """In a fresh interpreter without site packages: an import from elsewhere would fail, or be seen."""
    program = "import sys, json; before = set(sys.modules); import batching; "
    program += "print(json.dumps(sorted(set(sys.modules) - before)))"
    answer = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    rooms = {name.partition(".")[0] for name in json.loads(answer.stdout)}
    assert "batching" in rooms
    assert rooms - sys.stdlib_module_names == {"batching"}


def test_every_public_name_is_there_and_listed_in_order():
    assert all(hasattr(batching, name) for name in batching.__all__)
    assert batching.__all__ == sorted(batching.__all__)

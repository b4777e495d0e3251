"""The gateway imports this room, and must start in a second: no torch."""

import subprocess
import sys
from pathlib import Path

import model

ROOT = Path(model.__file__).parents[1]


def test_importing_the_workers_loads_no_torch():
    script = "import sys, model.worker; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "[]\n"

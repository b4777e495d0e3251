"""The gateway decodes nothing itself, so it loads no Pillow; and no room but tests loads torch for an image."""

import subprocess
import sys
from pathlib import Path

import model

ROOT = Path(model.__file__).parents[1]


def test_importing_the_room_loads_neither_pillow_nor_torch():
    script = "import sys, model, model.images; print({'PIL', 'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "set()\n"

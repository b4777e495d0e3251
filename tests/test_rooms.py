"""The rooms, and who may know whom: held here, so that it stays true."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("app", "batching", "model")

MAY_IMPORT = {
    "batching": {"batching"},
    "model": {"model"},
    "app": {"app", "batching", "model"},
}
HTTP = {"litestar", "uvicorn", "httptools", "starlette", "httpx", "aiohttp", "prometheus_client"}
TORCH = {"torch", "transformers", "sentence_transformers"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running the code."""
    script = f"import sys\n{code}\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case _:
                pass


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_the_gateway_process_has_no_torch():
    """It starts in a second, and a CUDA fault cannot reach it."""
    assert modules_after("import app.main, app.cli").isdisjoint(TORCH)


def test_the_models_public_names_need_no_torch():
    """The gateway prepares inputs with them."""
    assert modules_after("import model, model.worker").isdisjoint(TORCH | HTTP | {"app", "batching"})


def test_batching_needs_the_standard_library_alone():
    loaded = modules_after("import batching")
    ours = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    # Whatever an interpreter of this environment loads before any code of ours is not batching's doing.
    assert ours - modules_after("") == {"batching"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_it_may_know(room: str):
    for path in files_of(room):
        rooms = {name.partition(".")[0] for name in imports_of(path)} & set(ROOMS)
        assert rooms <= MAY_IMPORT[room], path


def test_batching_imports_only_the_standard_library():
    for path in files_of("batching"):
        roots = {name.partition(".")[0] for name in imports_of(path)}
        assert roots <= sys.stdlib_module_names | {"batching"}, path


def test_the_model_room_knows_no_http():
    for path in files_of("model"):
        assert {name.partition(".")[0] for name in imports_of(path)}.isdisjoint(HTTP), path


def test_app_imports_from_rooms_and_not_from_their_files():
    """What a room does not export may change without notice. Workers and images are rooms within the model's."""
    public = {"batching", "model", "model.images", "model.worker"}
    for path in files_of("app"):
        theirs = {name for name in imports_of(path) if name.partition(".")[0] in ("batching", "model")}
        assert theirs <= public, path


def test_only_the_program_imports_the_table_of_contents():
    """app.main imports everything; whoever imports it closes a circle."""
    importers = {path.name for path in files_of("app") if "app.main" in set(imports_of(path))}
    assert importers <= {"launch.py"}


@pytest.mark.parametrize("room", ["batching", "model"])
def test_a_rooms_public_names_are_listed_and_exist(room: str):
    code = f"import {room}\nfor name in {room}.__all__: getattr({room}, name)\nassert {room}.__all__"
    modules_after(code)

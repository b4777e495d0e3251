"""The documentation says what the program does, or these tests fail."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import build_app
from app.sources import Sources

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_settings_table_is_the_settings():
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], check=True, cwd=ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    named = re.findall(
        r"`((?:app|batching|model|bench|tests|docs|deploy|examples)/[\w./-]+)`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_make_targets_that_the_readme_names_exist():
    named = set(re.findall(r"`?make ([a-z]+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {"serve", "test", "install", "check", "fix"} <= named
    assert named <= targets


def test_the_readme_names_every_command_and_no_other():
    readme = (ROOT / "README.md").read_text()
    commands = {name for name in build_app(Sources()) if not name.startswith("-")}
    assert {"serve", "check"} <= commands
    used = set(re.findall(r"\blaneway ([a-z][a-z0-9-]*)", readme))
    assert used
    assert used - commands == set()
    listed = {name for name in commands if f"`{name}`" in readme}
    assert commands - listed == set()

"""The real Prometheus, or a failure that says how to get it: these tests never skip."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.monitoring.install_prometheus import find_programs


@pytest.fixture(scope="session")
def programs() -> Mapping[str, Path]:
    return find_programs()


@pytest.fixture(scope="session")
def promtool(programs: Mapping[str, Path]) -> Path:
    return programs["promtool"]

"""The programs are found where they are, and their absence is told with what to do about it."""

from pathlib import Path

import pytest

from tests.monitoring import install_prometheus
from tests.monitoring.install_prometheus import PrometheusMissingError, find_programs


def put_program(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to install into, and nothing on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(install_prometheus, "DESTINATION", tmp_path)
    return tmp_path


def test_what_is_missing_is_named_with_what_to_do(nowhere: Path) -> None:
    put_program(nowhere, "prometheus")
    with pytest.raises(PrometheusMissingError) as caught:
        find_programs()
    assert str(caught.value) == (
        f"promtool not found, neither on the PATH nor in {nowhere}. Install Prometheus (2.42 or later) so that `prometheus` "
        "and `promtool` are on the PATH, or, where apt is at hand, run: python tests/monitoring/install_prometheus.py"
    )


def test_what_is_on_the_path_is_used_first(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: put_program(nowhere, name) for name in ("prometheus", "promtool")}
    assert find_programs() == own
    elsewhere = nowhere / "elsewhere"
    elsewhere.mkdir()
    first = put_program(elsewhere, "promtool")
    monkeypatch.setenv("PATH", str(elsewhere))
    assert find_programs() == {**own, "promtool": first}


def test_without_apt_installing_is_a_warning(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make test` goes on, and the tests that need Prometheus fail by themselves."""
    install_prometheus.main()
    assert "warning: Prometheus was not installed ([Errno 2] No such file or directory: 'apt-get')." in (
        capsys.readouterr().err
    )

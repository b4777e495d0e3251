"""Puts ``prometheus`` and ``promtool`` where the tests look for them, without root.

On the PATH they are used as they are. Elsewhere Debian's package is downloaded and two files are taken out of
it; nothing is installed in the system. Whatever goes wrong is a warning here and a failure in the tests that
need them, which say the same.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = ("prometheus", "promtool")
DESTINATION = Path(sys.prefix, "share", "prometheus")
ADVICE = (
    "Install Prometheus (2.42 or later) so that `prometheus` and `promtool` are on the PATH, or, where apt is at "
    "hand, run: python tests/monitoring/install_prometheus.py"
)


class PrometheusMissingError(Exception):
    """The programs are neither on the PATH nor in this environment."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            f"{' and '.join(missing)} not found, neither on the PATH nor in {DESTINATION}. {ADVICE}"
        )
        self.missing = missing


def find_programs() -> Mapping[str, Path]:
    """Where each of ``PROGRAMS`` lies.

    Raises:
        PrometheusMissingError: At least one of them is nowhere.
    """
    found = {name: shutil.which(name) or shutil.which(name, path=str(DESTINATION)) for name in PROGRAMS}
    if missing := [name for name, path in found.items() if path is None]:
        raise PrometheusMissingError(missing)
    return {name: Path(path) for name, path in found.items() if path is not None}


def install() -> None:
    """Download Debian's package and keep the two programs.

    Raises:
        OSError, subprocess.SubprocessError: There is no apt here, or it has no such package.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            download(root)
        except subprocess.CalledProcessError:
            # Slim images come without package lists. Lists of our own need no root.
            download(root, *fresh_lists(root))
        (package,) = root.glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(package), folder], check=True, timeout=120)
        DESTINATION.mkdir(parents=True, exist_ok=True)
        for name in PROGRAMS:
            shutil.move(root / "usr" / "bin" / name, DESTINATION / name)


def download(folder: Path, *options: str) -> None:
    """Put the package's file into the folder."""
    command = ["apt-get", *options, "-qq", "download", "prometheus"]
    subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)


def fresh_lists(folder: Path) -> list[str]:
    """Fetch package lists into the folder; returns apt's options that use them."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    settings = (f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}/cache", "Debug::NoLocking=true")
    options = [part for setting in settings for part in ("-o", setting)]
    subprocess.run(["apt-get", *options, "-qq", "update"], check=True, timeout=300, capture_output=True)
    return options


def main() -> None:
    """Install the programs unless they are there."""
    try:
        find_programs()
    except PrometheusMissingError:
        try:
            install()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            sys.stderr.write(
                f"warning: Prometheus was not installed ({error}).\nThe tests in tests/monitoring need it. {ADVICE}\n"
            )


if __name__ == "__main__":
    main()

"""Puts Chromium where the browser tests look for it: on the PATH, from Debian's packages.

A browser needs some hundred libraries beside it, so it is installed like any other package, which takes root.
Whatever goes wrong is a warning here and a failure in the tests that need it, which say the same.
"""

import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")
ADVICE = "Install Chromium so that `chromium` is on the PATH; on Debian: apt-get install chromium"
_TIMEOUT_S = 600


class ChromiumMissingError(Exception):
    """There is no browser on the PATH."""

    def __init__(self) -> None:
        super().__init__(f"none of {', '.join(NAMES)} is on the PATH. {ADVICE}")


def find_chromium() -> str:
    """Where the browser is.

    Raises:
        ChromiumMissingError: It is nowhere.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise ChromiumMissingError
    return path


def install() -> None:
    """Install Debian's package.

    Raises:
        OSError, subprocess.SubprocessError: There is no apt, no right to use it, or no such package.
    """
    try:
        apt_get("install")
    except subprocess.CalledProcessError:
        # Slim images come without package lists.
        subprocess.run(["apt-get", "-qq", "update"], check=True, timeout=_TIMEOUT_S, capture_output=True)
        apt_get("install")


def apt_get(command: str) -> None:
    """Run apt for the browser, without questions."""
    options = ["-qq", "--yes", "--no-install-recommends"]
    subprocess.run(
        ["apt-get", *options, command, "chromium"], check=True, timeout=_TIMEOUT_S, capture_output=True
    )


def main() -> None:
    """Install the browser unless there is one."""
    try:
        find_chromium()
    except ChromiumMissingError:
        sys.stdout.write("Installing Chromium from Debian's packages, for the tests in tests/browser\n")
        try:
            install()
        except (OSError, subprocess.SubprocessError) as error:
            sys.stderr.write(
                f"warning: Chromium was not installed ({error}).\nThe tests in tests/browser need it. {ADVICE}\n"
            )


if __name__ == "__main__":
    main()

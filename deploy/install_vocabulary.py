"""Puts the cl100k_base vocabulary into this environment, so that token arrays are understood at once.

LangChain's defaults send ids of that vocabulary. The wheel of llama-index-core carries the file; it is
downloaded at its pinned version, and the one file is taken out. Nothing of it is installed or run. Whatever
goes wrong is a warning: the server works without, and says so to those who send token arrays.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llama-index-core"
MEMBER = "llama_index/core/_static/tiktoken_cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
DESTINATION = Path(sys.prefix, "share", "laneway", "cl100k_base.tiktoken")
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def main() -> None:
    """Install the file unless it is there."""
    if DESTINATION.is_file() and is_intact(DESTINATION.read_bytes()):
        return
    try:
        content = read_member(PACKAGE, pinned_version(CONSTRAINTS.read_text(encoding="utf-8"), PACKAGE))
    except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, KeyError, ValueError) as error:
        warn(str(error))
        return
    if not is_intact(content):
        warn(f"{MEMBER} is not the published file (its sha256 differs)")
        return
    DESTINATION.parent.mkdir(parents=True, exist_ok=True)
    DESTINATION.write_bytes(content)


def pinned_version(constraints: str, package: str) -> str:
    """The version that the constraints give the package."""
    match = re.search(rf"^{re.escape(package)}==(\S+)$", constraints, flags=re.MULTILINE)
    if match is None:
        raise ValueError(f"{package} has no pinned version")
    return match[1]


def read_member(package: str, version: str) -> bytes:
    """Download the package's wheel and read the file from it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", folder, f"{package}=={version}"], check=True, timeout=120)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def is_intact(content: bytes) -> bool:
    """Whether these are the published bytes."""
    return hashlib.sha256(content).hexdigest() == SHA256


def warn(reason: str) -> None:
    """Say what does not work now, and how to get it later."""
    sys.stderr.write(
        f"warning: the cl100k_base vocabulary was not installed ({reason}).\n"
        "Token arrays, which LangChain sends by default, need it: run `laneway pull cl100k` later.\n"
    )


if __name__ == "__main__":
    main()

"""All benchmarks of this machine, one after the other: ``make bench``.

``--rounds`` and ``--texts`` are handed to each of them; without, each has its own default.
"""

import subprocess
import sys

BENCHMARKS = (
    ("packing",),
    ("gateway",),
    ("workers",),
    ("lanes", "--engine", "minilm"),
    ("lanes", "--engine", "sleeping-7b"),
)


def main() -> None:
    for name, *own in BENCHMARKS:
        print(f"\n=== bench.{' '.join((name, *own))}", flush=True)
        command = [sys.executable, "-m", f"bench.{name}", *own, *sys.argv[1:]]
        code = subprocess.run(command, check=False).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()

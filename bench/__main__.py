"""All benchmarks that need nothing but two cores, one after the other: ``make bench``.

``--rounds`` and ``--texts`` are handed to each of them; without, each has its own default. One that fails, on a
machine that is too busy for it, does not keep the others from running.
"""

import subprocess
import sys

BENCHMARKS = (
    ("packing",),
    ("gateway",),
    ("workers",),
    ("interruption",),
    ("metrics",),
    ("lanes", "--engine", "minilm"),
    ("lanes", "--engine", "sleeping-7b"),
)


def main() -> None:
    failed: list[str] = []
    for name, *own in BENCHMARKS:
        title = f"bench.{' '.join((name, *own))}"
        print(f"\n=== {title}", flush=True)
        command = [sys.executable, "-m", f"bench.{name}", *own, *sys.argv[1:]]
        if subprocess.run(command, check=False).returncode:
            failed.append(title)
    if failed:
        sys.exit(f"\nwithout a result: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""All benchmarks of this machine, one after the other: ``make bench``.

``--rounds`` and ``--texts`` are handed to each of them; without, each has its own default.
"""

import subprocess
import sys


def main() -> None:
    for name in ("packing", "gateway", "workers"):
        print(f"\n=== bench.{name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"bench.{name}", *sys.argv[1:]], check=False).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()

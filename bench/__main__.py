"""All benchmarks of this machine, one after the other: ``make bench``."""

import subprocess
import sys


def main() -> None:
    for name in ("packing", "gateway", "workers"):
        print(f"\n=== bench.{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{name}", *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()

"""What every benchmark shares: its options, paired ratios, and a stored result that carries its card.

Law of this folder: a number is a ratio of two arms of one run, taken round by round, so that a machine that
is slow for a while is slow for both. The median and its confidence interval are reported. A control arm,
the first one run again at the end of each round, says whether the run was quiet enough to mean anything;
only then is its result stored.
"""

import argparse
import json
import os
import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

RESULTS = Path(__file__).parent / "results"

MAX_CONTROL_DEVIATION = 0.05
"""A quiet run's control ratio is no further from 1."""
MAX_CONTROL_INTERVAL_DEVIATION = 0.10
"""And no end of its confidence interval is further from 1."""
MIN_QUIET_ROUNDS = 5
"""The interval of fewer rounds is narrow because little was seen, and says nothing."""
MIN_P99_SAMPLES = 1_000
"""Ten samples lie above the 99th percentile then; of fewer, it is the story of one or two outliers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A median of paired ratios with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    num_rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where single measurements lie, in milliseconds."""

    median_ms: float
    p99_ms: float | None
    """``None`` of fewer than ``MIN_P99_SAMPLES``."""
    num_samples: int

    def __str__(self) -> str:
        p99 = f"needs {MIN_P99_SAMPLES:,} samples" if self.p99_ms is None else f"{self.p99_ms:.2f} ms"
        return f"median {self.median_ms:.2f} ms, p99 {p99}"


def arguments(description: str | None, *, rounds: int, texts: int) -> argparse.ArgumentParser:
    """A parser of the options that all benchmarks have, with this one's defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="besides the first, which warms up")
    parser.add_argument("--texts", type=int, default=texts)
    return parser


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Ratio:
    """The ratio of two arms, from what each gave in the same rounds."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    rng = random.Random(seed)
    resampled = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return Ratio(median=median(ratios), low=resampled[50], high=resampled[1949], num_rounds=len(ratios))


def averaged(first: Sequence[float], again: Sequence[float]) -> list[float]:
    """An arm that each round ran at its start and at its end, as if it had run in the middle."""
    return [(a + b) / 2 for a, b in zip(first, again, strict=True)]


def spread(samples_ms: Sequence[float]) -> Spread:
    """The median, and the 99th percentile where there are enough samples for one."""
    num_samples = len(samples_ms)
    p99_ms = quantiles(samples_ms, n=100)[98] if num_samples >= MIN_P99_SAMPLES else None
    return Spread(median_ms=median(samples_ms), p99_ms=p99_ms, num_samples=num_samples)


def is_quiet(control: Ratio) -> bool:
    """Whether an arm against itself came out near enough to 1, and surely enough, for the run to be quoted."""
    return (
        control.num_rounds >= MIN_QUIET_ROUNDS
        and abs(control.median - 1) <= MAX_CONTROL_DEVIATION
        and control.low >= 1 - MAX_CONTROL_INTERVAL_DEVIATION
        and control.high <= 1 + MAX_CONTROL_INTERVAL_DEVIATION
    )


def verdict(control: Ratio) -> str:
    """The same in words, for the table."""
    if control.num_rounds < MIN_QUIET_ROUNDS:
        return f"TOO FEW ROUNDS to quote, needs {MIN_QUIET_ROUNDS}"
    return "quiet" if is_quiet(control) else "TOO NOISY to quote"


def card() -> dict[str, object]:
    """What a stored number must carry: commit, machine, versions, command."""
    import torch
    import transformers

    # Results stored by the benchmark before this one do not make the measured code another one.
    changes = _output("git", "status", "--porcelain", "--", ":/", ":(exclude,top)bench/results")
    return {
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "is_dirty": None if changes is None else bool(changes),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.orig_argv),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def command_line(original_argv: Sequence[str]) -> str:
    """What to type to run the same again, whichever interpreter of whichever folder ran it."""
    return shlex.join(["python", *original_argv[1:]])


def save(name: str, control: Ratio, result: dict[str, object], *, folder: Path = RESULTS) -> None:
    """Store the result with its control, and say where; of a run that was not quiet, say that it is not.

    What an earlier, quiet run stored stays as it is then.
    """
    if not is_quiet(control):
        print(f"not stored: {verdict(control)}")
        return
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**result, "control": control}, indent=2, default=_plain) + "\n")
    print(f"stored in {path}")


def _plain(value: object) -> object:
    match value:
        case Ratio():
            return {
                "median": round(value.median, 3),
                "ci95": [round(value.low, 3), round(value.high, 3)],
                "rounds": value.num_rounds,
            }
        case Spread():
            return {
                "median": round(value.median_ms, 3),
                "p99": None if value.p99_ms is None else round(value.p99_ms, 3),
                "samples": value.num_samples,
            }
        case _:
            raise TypeError(f"{type(value).__name__} cannot be stored")


def _output(*command: str) -> str | None:
    """What the command prints, or ``None`` where there is no such program or no repository."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )

"""What every benchmark shares: the texts, paired ratios, and a result that carries its card.

Law of this folder: a number is a ratio of two arms of one run, taken round by round, so that a machine that
is slow for a while is slow for both. The median and its confidence interval are reported, and a control arm
against itself says whether the run was quiet enough to mean anything.
"""

import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
MAX_CONTROL_DEVIATION = 0.05
"""A run whose control ratio is further from 1 than this is called too noisy."""

_WORDS = tuple(
    "the river search index query document vector of and fast slow memory light house garden machine "  # noqa: SIM905 - reads better
    "paper window measure letter between carry silver morning engine answer small large people water".split()
)


def lognormal_texts(count: int, *, median_words: int = 40, sigma: float = 1.0, seed: int = 0) -> list[str]:
    """Texts whose lengths are spread as those of real documents: many short, a few very long."""
    rng = random.Random(seed)
    lengths = (max(2, round(rng.lognormvariate(0, sigma) * median_words)) for _ in range(count))
    return [" ".join(rng.choices(_WORDS, k=length)) for length in lengths]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A median of paired ratios with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    num_rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Ratio:
    """The ratio of two arms, from what each gave in the same rounds."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    rng = random.Random(seed)
    resampled = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return Ratio(median=median(ratios), low=resampled[50], high=resampled[1949], num_rounds=len(ratios))


def is_quiet(control: Ratio) -> bool:
    """Whether an arm against itself came out near enough to 1 for the run to be quoted."""
    return abs(control.median - 1) <= MAX_CONTROL_DEVIATION


def verdict(control: Ratio) -> str:
    """The same in words, for the table."""
    return "quiet" if is_quiet(control) else "TOO NOISY to quote"


def card() -> dict[str, object]:
    """What a stored number must carry: commit, machine, versions, command."""
    import torch
    import transformers

    return {
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "is_dirty": bool(_output("git", "status", "--porcelain")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def save(name: str, result: dict[str, object]) -> Path:
    """Write the result beside the others, and return where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, default=_plain) + "\n")
    return path


def _plain(value: object) -> object:
    if isinstance(value, Ratio):
        return {
            "median": round(value.median, 3),
            "ci95": [round(value.low, 3), round(value.high, 3)],
            "rounds": value.num_rounds,
        }
    raise TypeError(f"{type(value).__name__} cannot be stored")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )

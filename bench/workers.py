"""One single-threaded worker a core, or one worker with all threads: both behind a gateway, in one run.

    python -m bench.workers [--rounds 7] [--texts 256]

Two servers stand side by side, and only one of them works at a time: documents over HTTP, in turn within
each round, and the first server once more as the control.
"""

import argparse
import asyncio

from bench.gateway import REQUEST_TEXTS, Server, http_seconds, request_body
from bench.report import card, lognormal_texts, paired_ratio, save, verdict


async def measure(num_rounds: int, num_texts: int) -> None:
    texts = lognormal_texts(num_texts)
    bodies = [
        request_body(texts[start : start + REQUEST_TEXTS], "document")
        for start in range(0, num_texts, REQUEST_TEXTS)
    ]
    many, one = Server(), Server("--workers", "1")
    try:
        for server in (many, one):
            await server.seconds_until("/health/ready", b" 200 ")
        many_s: list[float] = []
        one_s: list[float] = []
        again_s: list[float] = []
        for number in range(num_rounds + 1):
            times = [(await http_seconds(server.port, bodies))[0] for server in (many, one, many)]
            if number:  # the first round warms up
                for arm, seconds in zip((many_s, one_s, again_s), times, strict=True):
                    arm.append(seconds)
    finally:
        many.stop()
        one.stop()
    control = paired_ratio(again_s, many_s)
    ratio = paired_ratio(one_s, many_s)
    print(f"{num_texts} texts over HTTP")
    print(f"  control (against itself)                                  {control}: {verdict(control)}")
    print(f"  throughput of a worker a core over one with all threads   {ratio}")
    path = save(
        "workers-cpu", {"card": card(), "load": {"texts": num_texts}, "control": control, "ratio": ratio}
    )
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=256)
    options = parser.parse_args()
    asyncio.run(measure(options.rounds, options.texts))


if __name__ == "__main__":
    main()

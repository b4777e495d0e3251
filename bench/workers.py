"""One single-threaded worker a core, or one worker with all threads: both behind a gateway, in one run.

    python -m bench.workers [--rounds 7] [--texts 256]

Two servers stand side by side, and only one of them works at a time. Arms, in turn within each round, each the
same texts as document requests over HTTP:
  many         a worker a core, the default
  one          one worker, as many threads as cores
  many again   the control
"""

import asyncio

from bench.client import Server, document_bodies, post_all
from bench.loads import lognormal_texts
from bench.report import arguments, averaged, card, paired_ratio, save, verdict


async def measure(num_rounds: int, num_texts: int) -> None:
    bodies = document_bodies(lognormal_texts(num_texts))
    many_s: list[float] = []
    one_s: list[float] = []
    again_s: list[float] = []
    many, one = Server(), Server("--workers", "1")
    try:
        for server in (many, one):
            await server.seconds_until("/health/ready")
        for number in range(num_rounds + 1):
            times = [(await post_all(server.port, bodies))[0] for server in (many, one, many)]
            if number:  # the first round warms up
                for arm, seconds in zip((many_s, one_s, again_s), times, strict=True):
                    arm.append(seconds)
    finally:
        many.stop()
        one.stop()
    control = paired_ratio(again_s, many_s)
    # Time of one over time of many is throughput of many over throughput of one.
    many_over_one = paired_ratio(one_s, averaged(many_s, again_s))
    print(f"{num_texts} texts over HTTP")
    print(f"  control (against itself)                                  {control}: {verdict(control)}")
    print(f"  throughput of a worker a core over one with all threads   {many_over_one}")
    save(
        "workers-cpu",
        control,
        {
            "card": card(),
            "load": {"texts": num_texts, "requests": len(bodies)},
            "many_over_one_throughput": many_over_one,
        },
    )


def main() -> None:
    options = arguments(__doc__, rounds=7, texts=256).parse_args()
    asyncio.run(measure(options.rounds, options.texts))


if __name__ == "__main__":
    main()

"""What the benchmark of the lanes sends, counts and decides. Nothing here asserts a speed."""

import asyncio
import base64
import json
import re
import shlex
import sys
import threading
import xml.etree.ElementTree as ET
from argparse import Namespace
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from bench import lanes
from bench.arms import FIFO, LANES, MIX, PEERS, QUERIES, SEED, SETUPS, TAU_7B_MS, Arm, QueryRate, Setup
from bench.arrivals import Arrivals, arrivals, no_arrivals
from bench.comparison import Block, Overload, Run, is_quotable, overload_of, ratios_of
from bench.corpora import LONG_SHARE, with_long_texts
from bench.lanes import Bench, arms_of, check_count, parser, varied
from bench.openloop import Load, Log, Scrape, Sent, Target, drive, retry_after_s
from bench.plot import Axis, Line, chart, decades, latency_chart
from bench.raw import (
    MIN_COUNTED_PASSES,
    PASSES_OUT,
    Answered,
    full_rate,
    raw_seconds,
    raw_tokens_per_s,
    spread_out,
)
from bench.report import Ratio
from bench.scrape import cpu_seconds, device_seconds, histogram_p99, samples_of
from bench.serve import settings_of
from bench.sleeping import EAGER_7B, GRAPHS_7B, SleepingEncoder, Timing, row_of, sleeping_info
from bench.tables import curve_of
from bench.tails import (
    Punctuality,
    Rates,
    answers_per_s,
    cores_of,
    count_statuses,
    header_values,
    lane_shares,
    percentile,
    punctuality,
    rates_of_drained,
    rates_of_passes,
    tail_of,
    tail_ratio,
)
from bench.vectors import Corpus, WrongVectorError, rows_of
from model import Features, find_checkpoint
from model.interruption import Safepoints, safepoints
from model.worker import LoadOptions

REPOSITORY = Path(__file__).parents[1]


def sent(
    *,
    body: int = 0,
    intended_s: float = 0.0,
    sent_s: float | None = None,
    done_s: float = 1.0,
    status: int = 200,
    head: bytes = b"",
    content: bytes = b"",
    was_sent: bool = True,
) -> Sent:
    return Sent(
        body=body,
        intended_s=intended_s,
        sent_s=intended_s if sent_s is None else sent_s,
        done_s=done_s,
        status=status,
        head=head,
        content=content,
        was_sent=was_sent,
    )


# When requests are sent


def draw(*, count: int = 500, burstiness: float = 1.0, seed: int = 7, warm_s: float = 2.0) -> Arrivals:
    return arrivals(rate_per_s=50, count=count, num_bodies=9, warm_s=warm_s, burstiness=burstiness, seed=seed)


def gaps_of(schedule: Arrivals) -> list[float]:
    counted = schedule.offsets_s[schedule.num_warm :]
    return [after - before for before, after in pairwise(counted)]


def test_equal_seeds_give_equal_schedules():
    """All arms of a round get the same queries at the same moments."""
    assert draw() == draw()
    assert draw() != draw(seed=8)


def test_a_schedule_has_as_many_queries_as_a_percentile_needs():
    schedule = draw(count=500)
    counted = schedule.offsets_s[schedule.num_warm :]
    assert len(counted) == 500
    assert all(offset_s > schedule.warm_s for offset_s in counted)
    assert all(offset_s < schedule.warm_s for offset_s in schedule.offsets_s[: schedule.num_warm])
    assert list(schedule.offsets_s) == sorted(schedule.offsets_s)
    assert schedule.end_s == counted[-1]
    assert set(schedule.bodies) == set(range(9))


@pytest.mark.parametrize("burstiness", [1.0, 2.5])
def test_gaps_have_the_mean_and_the_spread_that_were_asked_for(burstiness: float):
    gaps_s = gaps_of(draw(count=20_000, burstiness=burstiness))
    assert mean(gaps_s) == pytest.approx(1 / 50, rel=0.1)
    assert stdev(gaps_s) / mean(gaps_s) == pytest.approx(burstiness, rel=0.1)


def test_a_block_without_queries_ends_with_its_warm_up():
    assert no_arrivals(1.5).end_s == 1.5


# What is made of the answers


def test_a_latency_runs_from_the_intended_moment():
    """A sender that is late, or that waits for the answer before, must not hide what its user waits for."""
    one = sent(intended_s=1.0, sent_s=1.4, done_s=1.5)
    assert one.latency_s == 0.5
    assert one.lateness_s == pytest.approx(0.4)


@pytest.mark.parametrize("status", [0, 429, 500, 503, 504])
def test_whatever_is_no_200_takes_for_ever(status: int):
    assert sent(status=status).latency_s == inf


def test_a_percentile_is_a_sample_and_a_missed_query_is_never_interpolated():
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, inf], 0.75) == 3.0
    assert percentile([1.0, 2.0, 3.0, inf], 0.76) == inf


def test_a_p99_is_told_of_a_thousand_queries_only():
    assert tail_of([0.001] * 999).p99_ms is None
    assert tail_of([0.001] * 1_000).p99_ms == 1.0
    assert tail_of([0.001] * 1_000).p999_ms is None
    assert tail_of([0.001] * 10_000).p999_ms == 1.0


def test_eleven_misses_in_a_thousand_are_the_p99():
    told = tail_of([0.001] * 989 + [inf] * 11)
    assert (told.num_missed, told.p50_ms, told.p99_ms) == (11, 1.0, inf)
    assert told.as_json() == {
        "queries": 1_000, "missed": 11, "p50": 1.0, "p90": 1.0, "p99": "missed", "p99.9": None, "max": "missed"
    }  # fmt: skip


def rounds_of(*scales: float) -> list[list[float]]:
    """Rounds of 250 latencies each, spread evenly up to the scale."""
    return [[scale * number / 250 for number in range(1, 251)] for scale in scales]


def test_the_ratio_of_two_tails_is_that_of_all_rounds_together():
    ratio = tail_ratio(rounds_of(3, 3, 3, 3), rounds_of(1, 1, 1, 1))
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((3.0, 3.0, 3.0))
    assert ratio.num_rounds == 4


def test_rounds_that_differ_widen_the_interval_of_a_tail():
    ratio = tail_ratio(rounds_of(3, 3, 3, 12), rounds_of(1, 1, 1, 1))
    assert ratio is not None
    assert ratio.low < 4 < 10 < ratio.high


def test_a_slow_round_of_both_arms_is_drawn_for_both():
    """Pairs are drawn, or a machine that was busy for a while would look like a difference."""
    ratio = tail_ratio(rounds_of(2, 2, 20, 2), rounds_of(1, 1, 10, 1))
    assert ratio is not None
    assert (ratio.low, ratio.high) == pytest.approx((2.0, 2.0))


def test_too_few_or_too_often_missed_queries_make_no_ratio():
    assert tail_ratio(rounds_of(1, 1, 1), rounds_of(1, 1, 1)) is None
    missed = [[inf] * 250, *rounds_of(1, 1, 1)]
    assert tail_ratio(missed, rounds_of(1, 1, 1, 1)) is None


@pytest.mark.parametrize(("lateness_s", "is_good"), [(0.010, True), (0.011, False)])
def test_a_block_that_was_sent_late_measured_its_sender(lateness_s: float, is_good: bool):
    assert Punctuality(lateness_p99_s=lateness_s, latency_p99_s=0.1).is_good is is_good


def test_misses_do_not_excuse_a_late_sender():
    """Two in a hundred are missed: beside their endless latency everything would be on time."""
    queries = [
        sent(intended_s=0.0, sent_s=0.5, done_s=1.0, status=200 if n < 98 else 503) for n in range(100)
    ]
    told = punctuality(queries)
    assert (told.lateness_p99_s, told.latency_p99_s, told.is_good) == (0.5, 1.0, False)


def test_a_block_without_an_answer_is_told_as_it_is():
    """All missed is a result; left out, the worst server would have no line in the table."""
    assert punctuality([sent(sent_s=0.001, status=503)]).is_good


def test_a_query_that_was_never_sent_is_the_senders_miss():
    told = punctuality([sent()] * 999 + [sent(status=0, was_sent=False)])
    assert not told.is_good
    assert str(told) == "had no connection for 1 queries"


def test_punctuality_is_that_of_the_latest_queries():
    queries = [sent(intended_s=0.0, sent_s=0.001 * number, done_s=1.0) for number in range(100)]
    told = punctuality(queries)
    assert told.lateness_p99_s == pytest.approx(0.098)
    assert told.latency_p99_s == 1.0
    assert str(told) == "went out 98.0 ms late and came back after 1000.0 ms (p99)"


def tokens_of_body(body: int) -> int:
    return 100 + body


def test_rates_are_those_of_the_passes_between_two_scrapes():
    """Without what was computed while warming up, and with queries told apart by their answers."""
    log = Log(
        documents=[sent(done_s=2.0)],
        warm_queries=[sent(done_s=0.5), sent(done_s=1.5)],
        queries=[sent(done_s=2.0), sent(done_s=3.0), sent(done_s=3.5), sent(done_s=2.5, status=429)],
        scrapes=[Scrape(at_s=1.0, content=b"1000"), Scrape(at_s=3.0, content=b"1400")],
    )
    rates = rates_of_passes(log, count_tokens=float, query_tokens=lambda _: 10)
    assert rates == Rates(documents_per_s=185.0, queries_per_s=15.0)
    assert rates.useful_per_s == 200.0
    assert rates_of_passes(Log(), count_tokens=float, query_tokens=tokens_of_body) is None


def test_cores_are_those_that_the_gateway_and_the_load_took_between_two_scrapes():
    log = Log(
        scrapes=[
            Scrape(at_s=1.0, content=b"10", load_cpu_s=3.0),
            Scrape(at_s=5.0, content=b"10.5", load_cpu_s=3.1),
        ]
    )
    assert cores_of(log, float) == {"gateway": 0.125, "load": pytest.approx(0.025)}
    assert cores_of(Log(), float) == {}
    samples = samples_of("process_cpu_seconds_total 12.5\n")
    assert cpu_seconds(samples) == 12.5


def test_a_server_that_counts_nothing_is_measured_until_its_last_answer():
    log = Log(
        documents=[sent(body=1, done_s=2.0), sent(body=2, done_s=4.0), sent(body=3, done_s=5.0, status=500)],
        queries=[sent(body=0, done_s=1.0)],
    )
    rates = rates_of_drained(log, document_tokens=tokens_of_body, query_tokens=lambda _: 10)
    assert rates == Rates(documents_per_s=(101 + 102) / 4, queries_per_s=2.5)
    assert rates_of_drained(Log(), document_tokens=tokens_of_body, query_tokens=tokens_of_body) is None


def test_a_capacity_is_counted_from_answer_to_answer():
    """The first answer only starts the clock: when its work began is not known."""
    documents = [sent(done_s=s) for s in (0.5, 2.0, 3.0, 3.5, 4.0, 9.0)]
    log = Log(documents=[*documents, sent(done_s=3.2, status=429)], warm_s=1.0, end_s=5.0)
    assert answers_per_s(log) == 1.5
    assert answers_per_s(Log(documents=[sent(done_s=2.0)] * 2, warm_s=1.0, end_s=5.0)) is None


@pytest.mark.parametrize(("num_counted", "is_right"), [(7, False), (8, True), (600, False)])
def test_what_the_gateway_counts_is_held_against_its_answers(num_counted: int, is_right: bool):
    """A count that is too large would be a throughput that nobody got."""
    one = corpus()
    log = Log(queries=[sent(body=1), sent(body=1, status=503)], documents=[sent(body=1)])
    with nullcontext() if is_right else pytest.raises(SystemExit, match=f"counted {num_counted} tokens"):
        check_count(log, num_counted, queries=one, documents=one)


def test_statuses_are_counted_by_name():
    assert count_statuses([sent(), sent(status=429), sent(status=0), sent()]) == {
        "200": 2, "429": 1, "no answer": 1
    }  # fmt: skip


HEAD = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nX-Queue-Time-Ms: 12.5"


def test_headers_are_found_whatever_their_case():
    assert sent(head=HEAD).header("x-queue-time-ms") == "12.5"
    assert sent(head=HEAD).header("x-other") is None
    assert header_values([sent(head=HEAD), sent(), sent(head=HEAD, status=429)], "x-queue-time-ms") == [12.5]


def test_milliseconds_win_over_seconds_in_what_a_refused_request_was_told():
    assert retry_after_s(sent(head=HEAD)) == 2.0
    assert retry_after_s(sent(head=HEAD + b"\r\nretry-after-ms: 40")) == 0.04
    assert retry_after_s(sent()) is None


# Rounds


def block(latency_s: float, useful_per_s: float = 100.0, *, lateness_s: float = 0.0) -> Block:
    return Block(
        latencies_s=[latency_s] * 500,
        rates=Rates(documents_per_s=useful_per_s, queries_per_s=0.0),
        punctuality=Punctuality(lateness_p99_s=lateness_s, latency_p99_s=latency_s),
    )


def test_a_round_with_one_late_arm_counts_for_none(capsys: pytest.CaptureFixture[str]):
    """Ratios are of arms of the same round."""
    run = Run()
    run.add([100, 100, 100], {"Q": block(0.1), "MIX": block(0.2, lateness_s=0.03)})
    run.add([100, 102, 100], {"Q": block(0.1), "MIX": block(0.2)})
    assert (run.num_invalid_rounds, run.raw_per_s) == (1, [[100, 102, 100]])
    assert [len(blocks) for blocks in run.blocks.values()] == [1, 1]
    assert "MIX went out 30.0 ms late" in capsys.readouterr().err


def test_ratios_compare_what_their_names_say():
    run = Run()
    for _ in range(2):
        run.add(
            [200] * 5,
            {"Q": block(0.1), "MIX": block(0.2, 180), "FIFO": block(6.0, 200), "D": block(0.1, 190)},
        )
    arms = [
        QUERIES,
        MIX,
        Arm(name="FIFO", policy=FIFO, has_queries=True, has_documents=True),
        lanes.DOCUMENTS,
    ]
    told = {name: ratio and ratio.median for name, ratio in ratios_of(run, arms).items()}
    assert told == pytest.approx(
        {
            "MIX / RAW, useful tokens": 0.9,
            "FIFO / RAW, useful tokens": 1.0,
            "D / RAW, useful tokens": 0.95,
            "MIX / Q, p99": 2.0,
            "FIFO / MIX, p99": 30.0,
        }
    )


def test_an_arm_is_held_against_the_bare_workers_just_before_and_behind_it():
    """The machine gets slower from arm to arm, and no arm looks better or worse for it."""
    run = Run()
    for _ in range(2):
        run.add([400, 300, 200, 100], {"Q": block(0.1), "D": block(0.1, 250), "MIX": block(0.2, 120)})
    [documents, mixed] = [run.over_raw(name) for name in ("D", "MIX")]
    assert (documents and documents.median, mixed and mixed.median) == (1.0, 0.8)
    assert run.control().median == pytest.approx((300 + 100) / (400 + 200))


def test_a_peer_is_compared_with_arms_that_were_drained_as_it_is():
    """From a cold start to the last document both are slower than in mid-flow; only together that is fair."""

    def drained(useful_per_s: float) -> Block:
        rates = Rates(documents_per_s=useful_per_s, queries_per_s=0.0)
        return replace(block(0.1, 200.0), drained_rates=rates)

    run = Run()
    for _ in range(2):
        peer = {name: replace(drained(50.0), rates=None) for name in ("PEER D", "PEER MIX")}
        run.add([200] * 6, {"Q": block(0.1), "D": drained(150.0), "MIX": drained(100.0), **peer})
    arms = [QUERIES, *PEERS, *PEERS.values()]
    told = {name: ratio.median for name, ratio in ratios_of(run, arms).items() if ratio and "tokens" in name}
    assert told == {
        "D / RAW, useful tokens": 1.0,
        "MIX / RAW, useful tokens": 1.0,
        "D / PEER D, useful tokens": 3.0,
        "MIX / PEER MIX, useful tokens": 2.0,
    }


# Overload


def flood() -> Log:
    told = b"HTTP/1.1 429 Too Many Requests\r\nretry-after-ms: 300"
    shares = [exposition(device_s, (0, 0, 0)).encode() for device_s in (3.0, 7.0)]
    return Log(
        queries=[sent(done_s=0.4), sent(status=429, head=told), sent(status=429)],
        documents=[sent(), sent(status=429)],
        retries=[sent(intended_s=1.0), sent(intended_s=2.0, status=429), sent(intended_s=2.1)],
        scrapes=[Scrape(at_s=float(at_s), content=content) for at_s, content in enumerate(shares)],
        end_s=2.0,
    )


def test_refused_queries_that_came_again_are_told_by_what_they_found():
    """Those that came when the flood was over say nothing of whether it is right under load."""
    told = overload_of(flood(), capacity_per_s=10, offered_per_s=20)
    assert (told.retry_statuses, told.late_retry_statuses) == ({"200": 1, "429": 1}, {"200": 1})
    assert (told.num_untold, told.longest_retry_after_s) == (1, 0.3)
    assert (told.answered_tail.num_queries, told.answered_tail.max_ms) == (1, 400)
    assert told.lane_shares == {"query": 1.0, "document": 0.0}
    assert told.is_every_request_answered


@pytest.mark.parametrize("log", ["queries", "documents", "retries"])
def test_an_accepted_request_without_vectors_is_seen_wherever_it_is(log: str):
    spoiled = flood()
    getattr(spoiled, log).append(sent(status=504))
    assert not overload_of(spoiled, capacity_per_s=10, offered_per_s=20).is_every_request_answered


def test_a_run_with_an_unanswered_request_under_overload_fails(monkeypatch: pytest.MonkeyPatch):
    """However quiet it was."""
    spoiled = flood()
    spoiled.queries.append(sent(status=0))
    overload = overload_of(spoiled, capacity_per_s=10, offered_per_s=20)
    run = Run()
    for _ in range(5):
        run.add([200, 200], {"Q": block(0.1)})
    monkeypatch.setattr(Bench, "arms", [QUERIES])
    options = parser().parse_args([])
    with pytest.raises(SystemExit, match="neither answered with vectors nor with 429"):
        lanes.report(SETUPS["minilm"], options, Bench(SETUPS["minilm"], options), run, overload)


# What bare workers do


class CountingWorker:
    """Answers one pass after the other, and counts how many it has."""

    def __init__(self) -> None:
        self.num_out = 0
        self.most_out = 0
        self.num_passes = 0
        self._turn = asyncio.Lock()

    async def run(self, features: Sequence[Features]) -> None:
        self.num_out += 1
        self.most_out = max(self.most_out, self.num_out)
        async with self._turn:
            await asyncio.sleep(0)
        self.num_out -= 1
        self.num_passes += 1


def test_a_bare_workers_next_pass_lies_with_it_when_one_ends():
    workers = [CountingWorker(), CountingWorker()]
    rate = asyncio.run(raw_tokens_per_s(workers, [[features(7)], [features(5)]], seconds=0.0))  # pyright: ignore[reportArgumentType]
    assert rate > 0
    assert [one.most_out for one in workers] == [PASSES_OUT, PASSES_OUT]
    assert all(one.num_passes > MIN_COUNTED_PASSES for one in workers)


def test_bare_workers_run_every_pass_once_where_that_is_asked_for():
    worker = CountingWorker()
    assert asyncio.run(raw_seconds([worker], [[features(7)]] * 9)) > 0  # pyright: ignore[reportArgumentType]
    assert (worker.num_passes, worker.most_out) == (9, PASSES_OUT)


def test_the_rate_of_bare_workers_has_no_idle_end_and_no_part_of_a_pass():
    """The first answer of each starts its clock; what came when a worker was given no more is not counted."""
    steady = [Answered(num_tokens=100, at_s=at_s) for at_s in (1.0, 2.0, 3.0, 4.0, 9.0)]
    slower = [Answered(num_tokens=tokens, at_s=at_s) for tokens, at_s in ((7, 0.5), (90, 2.5), (30, 3.5))]
    assert full_rate([steady, slower], full_until_s=4.0) == pytest.approx(100 + 120 / 3)


def test_every_stretch_of_passes_that_were_spread_out_is_as_mixed_as_the_whole():
    ordered = [[features(100 - number)] for number in range(90)]
    lengths = [cut[0].num_tokens for cut in spread_out(ordered)]
    assert sorted(lengths) == list(range(11, 101))
    assert all(
        mean(lengths[start : start + 30]) == pytest.approx(mean(lengths), rel=0.05) for start in range(60)
    )


# More rounds


def test_a_varied_setting_is_compared_with_queries_alone():
    run = Run()
    for _ in range(2):
        run.add([200] * 4, {"Q": block(0.1), "a=1": block(0.3), "a=2": block(0.5)})
    arms = [
        QUERIES,
        *(Arm(name=name, policy=name, has_queries=True, has_documents=True) for name in ("a=1", "a=2")),
    ]
    ratios = ratios_of(run, arms)
    assert ratios["a=1 / Q, p99"] is not None
    assert ratios["a=1 / Q, p99"].median == pytest.approx(3.0)
    assert set(ratios) == {f"a={v} / {of}" for v in "12" for of in ("Q, p99", "RAW, useful tokens")}


@pytest.mark.parametrize(
    ("median", "num_rounds", "expected"),
    [(1.029, 5, True), (1.031, 5, False), (0.969, 5, False), (1.0, 4, False)],
)
def test_a_run_is_quoted_if_the_bare_workers_equal_themselves(median: float, num_rounds: int, expected: bool):
    assert is_quotable(Ratio(median=median, low=0.99, high=1.01, num_rounds=num_rounds)) is expected


# Arms


def documented_commands(page: str) -> list[str]:
    """What stands behind ``python -m bench.lanes`` there."""
    return re.findall(r"python -m bench\.lanes (--engine[^`\n]*)", (REPOSITORY / page).read_text())


COMMANDS = [*documented_commands("README.md"), *documented_commands("docs/choosing-tau.md")]


@pytest.mark.parametrize("command", [*COMMANDS, *(f"--engine {name}" for name in SETUPS)])
def test_the_servers_of_every_command_take_their_settings(command: str):
    """Names, bounds and what must hold between them; or the servers would not start, after minutes of other work."""
    options = parser().parse_args(shlex.split(command))
    setup = SETUPS[options.engine]
    for policy in arms_of(setup, options)[1].values():
        batching = settings_of([*setup.base_arguments, *policy.arguments()]).batching
        for name, value in policy.settings.items():
            assert getattr(batching, name.replace("-", "_")) == pytest.approx(float(value))


def test_commands_that_vary_a_setting_are_found_in_the_documentation():
    """Or the test above would look at nothing."""
    assert sum("--vary" in command for command in COMMANDS) >= 3


def test_a_server_says_what_is_wrong_with_its_settings(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        settings_of(["--max-pass-ms", "25", "--fill-ms", "31"])
    assert "fill_ms (31) is more than max_pass_ms (25)." in capsys.readouterr().err


def test_bounds_that_follow_tau_follow_the_tau_that_is_varied():
    settings = SETUPS["gme-2b"].varied("max-pass-ms", "80").settings
    assert settings == {"max-pass-ms": "80", "max-document-pass-ms": 160, "fill-ms": 80}
    assert SETUPS["gme-2b"].varied("document-share", "0.3").settings["fill-ms"] == TAU_7B_MS
    assert SETUPS["minilm"].varied("max-pass-ms", "80").settings == {"max-pass-ms": "80"}


@pytest.mark.parametrize("name", SETUPS)
def test_only_lanes_tell_queries_from_documents(name: str):
    policies = SETUPS[name].policies()
    assert not policies[LANES].is_one_lane
    assert policies[FIFO].is_one_lane
    assert policies[SEED].is_one_lane
    assert policies[SEED].settings["max-batch-size"] == 16
    assert policies[SEED].settings["max-wait-ms"] == 50


def test_long_documents_are_sent_where_they_are_longer_than_the_others():
    def names(engine: str, *more: str) -> list[str]:
        options = parser().parse_args(["--engine", engine, *more])
        return [arm.name for arm in arms_of(SETUPS[engine], options)[0]]

    assert names("sleeping-7b") == ["D", "Q", "MIX", "MIX+long", "FIFO", "SEED"]
    assert names("minilm") == ["D", "Q", "MIX", "FIFO", "SEED"]
    assert names("minilm", "--peer", "http://127.0.0.1:7997")[-2:] == ["PEER D", "PEER MIX"]
    assert names("minilm", "--vary", "document-share=0.1,0.3") == [
        "Q",
        "document-share=0.1",
        "document-share=0.3",
    ]


def test_a_varied_setting_overrides_the_setups_own():
    options = parser().parse_args(["--vary", "max-batch-size=8"])
    setup = replace(SETUPS["minilm"], lanes={"max-batch-size": 4, "document-share": 0.2})
    _, policies = arms_of(setup, options)
    assert policies["max-batch-size=8"].arguments() == ["--max-batch-size", "8", "--document-share", "0.2"]
    assert policies[LANES].arguments() == ["--max-batch-size", "4", "--document-share", "0.2"]


def test_a_rate_is_a_number_or_a_part_of_what_the_server_answers():
    assert parser().parse_args(["--rate", "30"]).rate == QueryRate(per_s=30)
    assert parser().parse_args(["--rate", "12.5%"]).rate == QueryRate(of_capacity=0.125)
    assert QueryRate(per_s=30).per_second(None) == 30
    assert QueryRate(of_capacity=0.125).per_second(80) == 10


def test_loads_can_be_compared_instead_of_settings():
    """One server gets them all, so that nothing but the rate differs."""
    options = parser().parse_args(["--vary", "rate=5%,40"])
    arms, policies = arms_of(SETUPS["minilm"], options)
    assert [(arm.name, arm.policy, arm.query_rate) for arm in arms] == [
        ("Q", LANES, None),
        ("rate=5%", LANES, QueryRate(of_capacity=0.05)),
        ("rate=40", LANES, QueryRate(per_s=40)),
    ]
    assert list(policies) == [LANES]


@pytest.mark.parametrize("text", ["", "%", "0", "-3%", "fast"])
def test_a_rate_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parser().parse_args(["--rate", text])
    assert "--rate" in capsys.readouterr().err


def test_a_setting_to_vary_is_a_name_and_values():
    assert varied("--max-pass-tokens=1,2") == ("max-pass-tokens", ("1", "2"))
    with pytest.raises(SystemExit):
        parser().parse_args(["--vary", "max-pass-tokens=1,,2"])
    with pytest.raises(SystemExit):
        parser().parse_args(["--vary", "rate=10%,fast"])


def test_two_in_a_hundred_documents_are_long():
    texts = with_long_texts(["short"] * 500, 300)
    long = [text for text in texts if text != "short"]
    assert len(long) == LONG_SHARE * 500
    assert all(len(text.split()) == 300 for text in long)


# Vectors


def features(length: int, first_id: int = 5) -> Features:
    return Features(token_ids=np.arange(first_id, first_id + length, dtype=np.int32))


def corpus(num_texts: int = 3, request_texts: int = 2) -> Corpus:
    some = [features(4, first_id=number) for number in range(num_texts)]
    return Corpus(
        texts=[f"text {number}" for number in range(num_texts)],
        features=some,
        expected=np.stack([row_of(one.token_ids, 8) for one in some]),
        request_texts=request_texts,
    )


def answer_of(rows: Sequence[np.ndarray], order: Sequence[int] | None = None) -> bytes:
    data = [
        {"index": index, "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()}
        for index, row in enumerate(rows)
    ]
    return json.dumps({"data": [data[index] for index in order or range(len(data))]}).encode()


def test_requests_hold_all_texts_in_order():
    bodies = [json.loads(body) for body in corpus().bodies({"model": "m"})]
    assert [body["input"] for body in bodies] == [["text 0", "text 1"], ["text 2"]]
    assert bodies[0]["model"] == "m"
    assert corpus().num_tokens(0) == 8
    assert corpus().num_tokens(1) == 4


def test_right_vectors_pass_in_whatever_order_they_are_listed():
    one = corpus()
    one.check(sent(content=answer_of(one.expected[:2], order=[1, 0])), min_cosine=0.9999)
    one.check(sent(body=1, content=answer_of(one.expected[2:])), min_cosine=0.9999)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[::-1], "a cosine of"),
        (lambda rows: rows[:1], r"vectors of shape \(1, 8\), not \(2, 8\)"),
        (lambda rows: rows[:, :4], r"vectors of shape \(2, 4\), not \(2, 8\)"),
        (lambda rows: rows * 2, "a vector of length 2.0000, not 1"),
        (lambda rows: rows * np.nan, "a vector of length nan, not 1"),
    ],
    ids=["swapped", "one missing", "too short", "not of unit length", "not a number"],
)
def test_wrong_vectors_are_found_out(spoil: Callable[[np.ndarray], np.ndarray], message: str):
    one = corpus()
    with pytest.raises(WrongVectorError, match=message):
        one.check(sent(content=answer_of(spoil(one.expected[:2]))), min_cosine=0.9999)


def test_a_peer_may_answer_in_numbers():
    content = json.dumps({"data": [{"index": 0, "embedding": [0.5, -1.0]}]}).encode()
    assert rows_of(content).tolist() == [[0.5, -1.0]]


# The model that sleeps


class FakeDevice:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


def sleeping(device: FakeDevice, timing: Timing) -> SleepingEncoder:
    options = LoadOptions(folder=str(find_checkpoint("minilm").folder), source="minilm")
    info = sleeping_info(options, name="sleeping", dimension=8)
    return SleepingEncoder(info, timing, sleep=device.sleep, clock=device.clock)


def test_a_small_pass_takes_what_launching_takes_and_a_large_one_what_its_tokens_take():
    assert EAGER_7B.pass_s([10]) == pytest.approx(0.020, abs=1e-6)
    assert GRAPHS_7B.pass_s([10]) == pytest.approx(0.006, abs=1e-6)
    assert EAGER_7B.pass_s([100] * 330) == pytest.approx(1.0, rel=0.01)
    assert EAGER_7B.pass_s([8_192]) - EAGER_7B.pass_s([1] * 8_192) == pytest.approx(
        8_192**2 * 4.7e-10, rel=0.01
    )


def test_a_pass_sleeps_its_time(device: FakeDevice):
    some = [features(40), features(7)]
    rows = sleeping(device, EAGER_7B).encode(some)
    assert device.now_s - 100 == pytest.approx(EAGER_7B.pass_s([40, 7]))
    assert rows.shape == (2, 8)
    assert rows.dtype == np.float32


def test_what_runs_between_two_layers_is_not_taken_off_the_pass(device: FakeDevice):
    """An interrupted pass still has all of its own work to do."""
    moments: list[float] = []

    def on_safepoint() -> None:
        moments.append(device.now_s - 100)
        device.sleep(0.5)

    with safepoints(Safepoints(on_safepoint=on_safepoint)):
        sleeping(device, Timing(floor_s=0.4, per_token_s=0, per_squared_token_s=0, num_layers=4)).encode(
            [features(3)]
        )
    assert moments == pytest.approx([0.0, 0.6, 1.2, 1.8])
    assert device.now_s - 100 == pytest.approx(2.4)


def test_a_sleeping_models_rows_belong_to_their_tokens():
    assert np.array_equal(row_of(features(4).token_ids, 32), row_of(features(4).token_ids, 32))
    assert float(np.linalg.norm(row_of(features(4).token_ids, 32))) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(row_of(features(4).token_ids, 512) @ row_of(features(5).token_ids, 512))) < 0.3


# What a server tells


def exposition(device_s: float, counts: Sequence[int]) -> str:
    bounds = ("0.1", "0.5", "+Inf")
    buckets = (
        f'lag_seconds_bucket{{model="m",le="{bound}"}} {count}'
        for bound, count in zip(bounds, counts, strict=True)
    )
    return "\n".join(
        [
            "# TYPE laneway_lane_device_seconds counter",
            f'laneway_lane_device_seconds_total{{lane="query",model="m"}} {device_s}',
            'laneway_lane_device_seconds_total{lane="document",model="m"} 1.0',
            "# TYPE lag_seconds histogram",
            *buckets,
            f'lag_seconds_count{{model="m"}} {counts[-1]}',
            "",
        ]
    )


def test_shares_of_the_device_are_those_of_the_block():
    before, after = (device_seconds(samples_of(exposition(s, (0, 0, 0)))) for s in (3.0, 7.0))
    assert lane_shares(before, after) == {"query": 1.0, "document": 0.0}
    assert lane_shares(after, after) == {}


def test_a_histograms_p99_counts_what_was_added():
    before, after = (
        samples_of(exposition(0, (1_000, 1_000, 1_000))),
        samples_of(exposition(0, (1_098, 1_100, 1_100))),
    )
    assert histogram_p99(before, after, "lag_seconds") == 0.5
    assert histogram_p99(after, after, "lag_seconds") is None
    assert histogram_p99(before, after, "other_seconds") is None


# Charts


def texts_in(svg: str) -> list[str]:
    return [one.text or "" for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_chart_of_latencies_names_every_arm():
    svg = latency_chart("A title & more", {"Q": [0.01, 0.02, 0.03], "MIX": [0.02, 0.04, inf]})
    assert {"A title & more", "Q", "MIX", "99 %", "milliseconds"} <= set(texts_in(svg))
    assert "nan" not in svg
    assert "inf" not in svg


def test_lines_go_up_where_values_do():
    svg = chart(
        "t",
        Axis(label="x", ticks=[(1, "1"), (10, "10")]),
        decades("y", [1, 100]),
        [Line(name="line", points=[(1, 1), (10, 100)])],
    )
    [line] = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline")
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x1 < x2
    assert y1 > y2


def test_numbers_and_parts_of_the_capacity_share_no_axis():
    tail = Block(latencies_s=[0.01] * 1_000)
    run = Run(blocks={f"rate={value}": [tail] for value in ("5%", "10%", "40")})
    assert curve_of(run, "rate", ["5%", "10%"]) is not None
    assert curve_of(run, "rate", ["5%", "40"]) is None


def test_the_curve_over_a_setting_shows_its_medians_as_well_as_its_tails():
    """Medians that lay below the axis were drawn along its border."""
    run = Run()
    for value, median_s in (("1", 0.010), ("2", 0.020)):
        latencies_s = [median_s] * 980 + [0.8 + median_s] * 20
        run.blocks[f"x={value}"] = [replace(block(0.1), latencies_s=latencies_s)]
    run.raw_per_s = [[100.0] * 3]
    svg = curve_of(run, "x", ["1", "2"])
    assert svg is not None
    ends = {}
    for line, name in zip(
        ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline"), ("p99", "p50"), strict=True
    ):
        ends[name] = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert ends["p50"][0] > ends["p50"][1] > ends["p99"][0] > ends["p99"][1]


def test_an_axis_holds_its_values():
    axis = decades("y", [13.0, 870.0])
    assert (axis.low, axis.high) == (10.0, 1_000.0)
    assert [label for _, label in axis.ticks] == ["10", "20", "50", "100", "200", "500", "1,000"]


# The load on a server


class FakeServer:
    """Answers each request as it is told to, after what it is told to wait for."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.answers: dict[bytes, list[bytes]] = {}
        """By body; the last one is repeated."""
        self.held: dict[bytes, int] = {}
        """Bodies that are answered only when so many requests have come, themselves among them."""
        self._waiting: list[tuple[int, asyncio.StreamWriter, bytes]] = []
        self.port = 0
        self.num_connections = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                body = await reader.readexactly(length)
                self.requests.append(body)
                answers = self.answers.get(body, [ok(body)])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                self._waiting.append((self.held.get(body, 0), writer, answer))
                due = [one for one in self._waiting if one[0] <= len(self.requests)]
                self._waiting = [one for one in self._waiting if one not in due]
                for _, waiting, late in due:
                    if late:
                        waiting.write(late)
                    else:
                        waiting.close()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def ok(content: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content)


@contextmanager
def serving(fake: FakeServer) -> Generator[FakeServer]:
    started, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
        fake.port = server.sockets[0].getsockname()[1]
        loops.append(asyncio.get_running_loop())
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield fake
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)


def load(fake: FakeServer, offsets_s: Sequence[float], **more: object) -> Load:
    schedule = Arrivals(offsets_s=offsets_s, bodies=list(range(len(offsets_s))), num_warm=0, warm_s=0.0)
    queries = [b"query %d" % number for number in range(len(offsets_s))]
    return Load(target=Target(port=fake.port), queries=queries, arrivals=schedule, timeout_s=10, **more)  # pyright: ignore[reportArgumentType]


def test_an_open_loop_does_not_wait_for_the_answer_before():
    """The first query is answered when the second has come: a loop that waited would never send it."""
    fake = FakeServer()
    fake.held[b"query 0"] = 2
    with serving(fake):
        log = drive(load(fake, [0.0, 0.05]))
    first, second = sorted(log.queries, key=lambda one: one.body)
    # Sorted: a machine that stood still sends both at once, on two connections.
    assert sorted(fake.requests) == [b"query 0", b"query 1"]
    assert (first.content, second.content) == (b"query 0", b"query 1")
    assert first.done_s >= 0.05
    assert second.sent_s >= 0.05


def test_every_query_ends_and_every_miss_is_counted():
    fake = FakeServer()
    fake.answers = {
        b"query 1": [b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"],
        b"query 2": [b""],  # breaks off
        b"query 3": [b"HTTP/1.1 200 OK\r\n\r\nno length"],
    }
    with serving(fake):
        log = drive(load(fake, [0.0, 0.01, 0.02, 0.03, 0.04]))
    assert count_statuses(log.queries) == {"200": 2, "503": 1, "no answer": 2}


@pytest.mark.parametrize(("spare_s", "num_connections"), [(60.0, 2), (0.0, 3)])
def test_a_spare_connection_is_not_used_when_the_server_may_be_about_to_end_it(
    monkeypatch: pytest.MonkeyPatch, spare_s: float, num_connections: int
):
    """Two spare ones for two queries, of which the second can use the connection of the first."""
    monkeypatch.setattr("bench.openloop._SPARE_S", spare_s)
    fake = FakeServer()
    with serving(fake):
        log = drive(load(fake, [0.01, 0.2]))
    assert count_statuses(log.queries) == {"200": 2}
    assert fake.num_connections == num_connections


def test_a_query_without_an_answer_is_given_up_at_its_timeout():
    fake = FakeServer()
    fake.held[b"query 0"] = 2
    with serving(fake):
        log = drive(replace(load(fake, [0.0]), timeout_s=0.05))
    [one] = log.queries
    assert one.status == 0
    assert one.latency_s == inf


def test_a_server_that_is_not_there_ends_the_run():
    with pytest.raises(OSError, match=r"\d"):
        drive(load(FakeServer(), [0.0]))


def test_warm_queries_are_sent_and_kept_apart():
    fake = FakeServer()
    with serving(fake):
        one = load(fake, [0.0, 0.01, 0.02])
        log = drive(replace(one, arrivals=replace(one.arrivals, num_warm=2, warm_s=0.015)))
    assert [len(log.warm_queries), len(log.queries)] == [2, 1]
    assert (log.warm_s, log.end_s) == (0.015, 0.02)


def test_documents_go_on_without_a_pause_and_in_their_order():
    """They go on until the query is answered, which is when five of them have come."""
    fake = FakeServer()
    fake.held[b"query 0"] = 6
    with serving(fake):
        one = load(fake, [0.0], documents=[b"a", b"b", b"c"], num_document_requests=2, drains_documents=True)
        log = drive(one)
    assert len(log.documents) >= 5
    # Two are out at a time, so answers may change places: the order that counts is the one of sending.
    in_order = sorted(log.documents, key=lambda one: one.sent_s)
    assert [one.body for one in in_order] == [number % 3 for number in range(len(in_order))]
    assert [one.content for one in in_order[:3]] == [b"a", b"b", b"c"]


def test_a_block_without_queries_lasts_as_long_as_it_was_told_to():
    fake = FakeServer()
    with serving(fake):
        log = drive(
            Load(target=Target(port=fake.port), queries=(), arrivals=no_arrivals(0.01), window_s=0.02)
        )
    assert (log.warm_s, log.end_s) == (0.01, 0.03)


def test_the_servers_counters_are_read_after_the_warm_up_and_at_the_end():
    fake = FakeServer()
    fake.answers = {b"": [ok(b"1"), ok(b"2")]}
    with serving(fake):
        one = load(fake, [0.01, 0.03], reads_metrics=True)
        log = drive(replace(one, arrivals=replace(one.arrivals, num_warm=1, warm_s=0.02)))
    assert [scrape.content for scrape in log.scrapes] == [b"1", b"2"]
    assert log.scrapes[0].at_s >= 0.02
    assert log.scrapes[1].at_s >= 0.03


def test_documents_that_are_drained_are_all_answered():
    fake = FakeServer()
    with serving(fake):
        log = drive(
            Load(
                target=Target(port=fake.port),
                queries=(),
                arrivals=no_arrivals(0.0),
                documents=[b"a"],
                num_document_requests=4,
                window_s=0.05,
                drains_documents=True,
            )
        )
    assert len(log.documents) == len(fake.requests)
    assert set(count_statuses(log.documents)) == {"200"}


def test_a_refused_query_comes_again_when_it_was_told_to():
    fake = FakeServer()
    refusal = b"HTTP/1.1 429 Too Many\r\nretry-after: 1\r\nretry-after-ms: 60\r\ncontent-length: 0\r\n\r\n"
    fake.answers = {b"query 1": [refusal, ok(b"at last")]}
    # The last query is answered when the one that was refused has come again: it does so while others go on.
    fake.held[b"query 2"] = 4
    with serving(fake):
        log = drive(load(fake, [0.0, 0.01, 0.02], retries_refused=True))
    assert count_statuses(log.queries) == {"200": 2, "429": 1}
    [refused] = [one for one in log.queries if one.status == 429]
    [retry] = log.retries
    assert (retry.status, retry.content) == (200, b"at last")
    assert retry.intended_s == pytest.approx(refused.done_s + 0.06)


# All of it


def test_a_whole_run_counts_what_it_sent_and_stores_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Real servers, real workers that sleep, the load in its own process; whatever the speed."""
    runs: list[Run] = []
    report = lanes.report

    def keep_and_report(
        setup: Setup, options: Namespace, bench: Bench, run: Run, overload: Overload | None
    ) -> None:
        runs.append(run)
        report(setup, options, bench, run, overload)

    monkeypatch.setattr(lanes, "report", keep_and_report)
    # However late this machine sends: it is the counting that is tested.
    monkeypatch.setattr(Block, "is_valid", True)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("bench", "--engine", "sleeping-quick", "--vary", "document-share=0.2", "--rounds", "1"),
            *(
                "--queries",
                "20",
                "--texts",
                "32",
                "--raw-s",
                "0.1",
                "--documents-s",
                "0.5",
                "--warm-s",
                "0.3",
            ),
        ],
    )
    lanes.main()
    [run] = runs
    assert set(run.blocks) == {"Q", "document-share=0.2"}
    [alone], [mixed] = run.blocks["Q"], run.blocks["document-share=0.2"]
    assert alone.statuses == mixed.statuses == {"200": 20}
    assert len(alone.latencies_s) == len(alone.queue_ms) == 20
    assert alone.document_statuses == {}
    # Whatever the speed: a machine that stood still between two scrapes has counted nothing there.
    assert set(mixed.document_statuses) <= {"200"}
    assert mixed.rates is not None
    assert mixed.rates.useful_per_s >= 0
    [raw_per_s] = run.raw_per_s
    assert len(raw_per_s) == 3
    assert min(raw_per_s) > 0
    assert capsys.readouterr().out.splitlines()[-1] == "not stored: TOO FEW ROUNDS to quote, needs 5"

"""The batcher on a clock that jumps: results, failures, cancellation, lost runners, and the end."""

import asyncio
import gc
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching import (
    Batcher,
    DeadlineError,
    DeadlineUnmeetableError,
    EntryFailedError,
    Lane,
    Limits,
    NoRunnersError,
    PassReport,
    QueueFullError,
    RunnerLostError,
    RunResult,
    Scheduler,
    ShuttingDownError,
    SubmissionOutcome,
    SubmissionTooLargeError,
    WorkItem,
)
from tests.batching.fakes import (
    PHASES,
    FakeRunner,
    Item,
    LayeredFake,
    known_cost,
    limits,
    now_s,
    on_virtual_time,
)

QUERY, DOCUMENT, BATCH = Lane


def batcher_of(
    *runners: FakeRunner,
    limits: Limits = limits(),  # noqa: B008 - frozen
    on_pass: Callable[[PassReport], None] | None = None,
) -> Batcher:
    batcher = Batcher(runners, limits=limits, cost=known_cost(), name="fake", clock=now_s, on_pass=on_pass)
    batcher.start()
    return batcher


def work(*items: Item) -> list[WorkItem]:
    return [item.work() for item in items]


async def embed(
    batcher: Batcher, *names: str, lane: Lane = DOCUMENT, num_tokens: int = 10, timeout_s: float | None = None
) -> SubmissionOutcome:
    items = work(*(Item(name=name, num_tokens=num_tokens) for name in names))
    return await batcher.submit(items, lane=lane, timeout_s=timeout_s)


async def settle() -> None:
    """Let everything that can happen without time happen."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestResults:
    def test_results_come_in_the_order_of_the_items_whatever_the_order_of_the_passes(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner())
            sizes = {"a": 70, "b": 60, "c": 30, "d": 40}
            outcome = await batcher.submit(
                work(*(Item(name=name, num_tokens=size) for name, size in sizes.items())), lane=DOCUMENT
            )
            assert runner.passes == [["a", "c"], ["b", "d"]]
            assert outcome.results == tuple(f"vector of {name}" for name in "abcd")
            await batcher.stop(1)

        on_virtual_time(main)

    def test_the_outcome_tells_the_longest_wait_and_the_time_of_each_pass_once(self):
        async def main():
            batcher = batcher_of(FakeRunner())
            outcome = await embed(batcher, *"abcd", num_tokens=50)
            assert outcome.queue_s == pytest.approx(0.110)
            assert outcome.device_s == pytest.approx(0.220)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_an_empty_submission_is_answered_at_once(self):
        async def main():
            batcher = batcher_of(FakeRunner())
            assert (await batcher.submit([], lane=QUERY)).results == ()
            await batcher.stop(1)

        on_virtual_time(main)

    def test_what_arrives_while_a_pass_runs_shares_the_next_one(self):
        """Batches form by themselves under load; nobody waits for them."""

        async def main():
            batcher = batcher_of(runner := FakeRunner())
            async with asyncio.TaskGroup() as group:
                for name in "abc":
                    group.create_task(embed(batcher, name, lane=QUERY))
                    await settle()
            assert runner.passes == [["a"], ["b", "c"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_query_overtakes_all_waiting_documents(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner())
            documents = asyncio.create_task(embed(batcher, *"abcdefgh", num_tokens=100))
            await settle()
            query = await embed(batcher, "query", lane=QUERY)
            assert runner.passes[:2] == [["a"], ["query"]]
            assert query.queue_s == pytest.approx(0.110)
            await documents
            await batcher.stop(1)

        on_virtual_time(main)

    def test_all_slots_work_at_the_same_time(self):
        async def main():
            batcher = batcher_of(FakeRunner(), FakeRunner(), FakeRunner())
            began_s = now_s()
            await embed(batcher, *"abcdef", num_tokens=100)
            assert now_s() - began_s == pytest.approx(0.220)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_documents_linger_on_an_idle_device_and_no_longer_than_allowed(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner(), limits=limits(max_wait_s=0.05))
            began_s = now_s()
            first = asyncio.create_task(embed(batcher, "a"))
            await asyncio.sleep(0.03)
            await embed(batcher, "b")
            assert (await first).queue_s == pytest.approx(0.05)
            assert now_s() - began_s == pytest.approx(0.05 + 0.030)
            assert runner.passes == [["a", "b"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_documents_that_begin_to_linger_when_the_queries_are_gone_still_run(self):
        """While queries wait there is no linger to be woken from; it begins when they are taken."""

        async def main():
            batcher = batcher_of(runner := FakeRunner(), limits=limits(max_wait_s=5))
            requests = [asyncio.create_task(embed(batcher, "first", lane=QUERY))]
            await settle()
            requests.append(asyncio.create_task(embed(batcher, "second", lane=QUERY)))
            await settle()
            began_s = now_s()
            document = await embed(batcher, "too long for a fill", num_tokens=60)
            assert document.queue_s == pytest.approx(5)
            assert now_s() - began_s == pytest.approx(5 + 0.070)
            assert runner.passes == [["first"], ["second"], ["too long for a fill"]]
            await asyncio.gather(*requests)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_submissions_may_come_before_the_start(self):
        async def main():
            batcher = Batcher([FakeRunner()], limits=limits(), clock=now_s)
            early = asyncio.create_task(embed(batcher, "early"))
            await settle()
            batcher.start()
            assert (await early).results == ("vector of early",)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_deadline_holds_before_the_start(self):
        async def main():
            batcher = Batcher([FakeRunner()], limits=limits(), cost=known_cost(), clock=now_s)
            began_s = now_s()
            with pytest.raises(DeadlineError):
                await embed(batcher, "early", timeout_s=1)
            assert now_s() - began_s == pytest.approx(1)
            batcher.start()
            await batcher.stop(1)

        on_virtual_time(main)


class TestRefusal:
    def test_a_full_lane_refuses_with_the_time_until_there_is_room(self):
        async def main():
            batcher = batcher_of(FakeRunner(), limits=limits(max_waiting_entries=10))
            running = asyncio.create_task(embed(batcher, *"0123456789"))
            await settle()
            waiting = asyncio.create_task(embed(batcher, *"0123456789"))
            await settle()
            with pytest.raises(QueueFullError) as refused:
                await embed(batcher, "one too many")
            assert refused.value.retry_after_s == pytest.approx(0.110 + 0.110)
            with pytest.raises(SubmissionTooLargeError):
                await embed(batcher, *"0123456789+")
            assert len((await waiting).results) == len((await running).results) == 10
            await batcher.stop(1)

        on_virtual_time(main)

    def test_an_item_without_tokens_is_a_mistake(self):
        with pytest.raises(ValueError, match="num_tokens is 0; an input has at least 1 token"):
            WorkItem(payload="", num_tokens=0)

    def test_a_batcher_without_runners_is_a_mistake(self):
        with pytest.raises(ValueError, match="a batcher needs at least one runner"):
            Batcher([], limits=limits())


class TestFailures:
    def test_a_result_that_is_an_exception_fails_its_own_submission_only(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner())
            bad = asyncio.create_task(
                batcher.submit(work(Item(name="fine"), Item(name="bad", is_bad=True)), lane=DOCUMENT)
            )
            good = asyncio.create_task(embed(batcher, "neighbour"))
            with pytest.raises(EntryFailedError) as failed:
                await bad
            assert str(failed.value) == "entry 1 failed: ValueError"
            assert (failed.value.index, str(failed.value.__cause__)) == (1, "bad")
            assert (await good).results == ("vector of neighbour",)
            assert len(runner.passes) == 1
            await batcher.stop(1)

        on_virtual_time(main)

    def test_one_poisonous_item_among_32_fails_alone(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner(), limits=limits(max_pass_entries=32))
            requests = [
                asyncio.create_task(
                    batcher.submit(work(Item(name=str(i), num_tokens=3, raises=i == 13)), lane=DOCUMENT)
                )
                for i in range(32)
            ]
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            for i, outcome in enumerate(outcomes):
                if i == 13:
                    assert isinstance(outcome, EntryFailedError)
                    assert isinstance(outcome.__cause__, ArithmeticError)
                else:
                    assert isinstance(outcome, SubmissionOutcome)
                    assert outcome.results == (f"vector of {i}",)
            assert len(runner.passes) == 1 + 2 * 5
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_failure_gives_the_rest_of_the_submission_up(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner())
            items = [Item(name="bad", num_tokens=100, is_bad=True)]
            items += [Item(name="rest", num_tokens=100) for _ in range(5)]
            with pytest.raises(EntryFailedError):
                await batcher.submit(work(*items), lane=DOCUMENT)
            assert runner.passes == [["bad"]]
            assert batcher.statistics().lanes[DOCUMENT].num_cancelled == 5
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_runner_that_gives_too_few_results_has_failed(self):
        """Results that cannot be told apart must not go to anybody."""

        class Forgetful(FakeRunner):
            async def run(self, payloads: Sequence[object], **how: bool) -> RunResult:
                return RunResult(results=(await super().run(payloads, **how)).results[1:], device_s=0.1)

        async def main():
            batcher = batcher_of(Forgetful())
            with pytest.raises(EntryFailedError) as failed:
                await embed(batcher, "a", "b")
            assert str(failed.value.__cause__) == "the runner gave 0 results for 1 payloads"
            await batcher.stop(1)

        on_virtual_time(main)

    def test_an_observer_that_raises_harms_nobody(self, caplog: pytest.LogCaptureFixture):
        def observe(report: PassReport) -> None:
            raise KeyError(report.slot)

        async def main():
            batcher = batcher_of(FakeRunner(), on_pass=observe)
            for name in "ab":
                assert (await embed(batcher, name)).results == (f"vector of {name}",)
            await batcher.stop(1)

        on_virtual_time(main)
        assert caplog.messages == ["fake: the observer of passes raised"] * 2


class TestAsking:
    """When slots ask for passes: once for everything that happens in a turn of the loop, and never too seldom."""

    def test_what_comes_in_one_turn_of_the_loop_is_looked_at_once(self, monkeypatch: pytest.MonkeyPatch):
        """Beside busy workers each look costs the gateway more than what it looks at."""
        looks: list[float] = []
        look = Scheduler.next_event_s

        def counted(self: Scheduler, now_s: float) -> float | None:
            looks.append(now_s)
            return look(self, now_s)

        monkeypatch.setattr(Scheduler, "next_event_s", counted)

        async def main():
            batcher = batcher_of(LayeredFake(), LayeredFake())
            await settle()
            looks.clear()
            callers = [asyncio.create_task(embed(batcher, name, lane=QUERY)) for name in "abcdef"]
            await settle()
            assert len(looks) == 1
            await asyncio.gather(*callers)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_what_is_too_early_by_the_clock_that_asked_is_woken_for(self):
        """The clock goes on while slots ask: a moment that comes meanwhile must not be taken for one that was."""

        async def main():
            clock_s = now_s()

            def going_clock() -> float:
                nonlocal clock_s
                clock_s = max(clock_s, now_s()) + 0.001
                return clock_s

            batcher = Batcher(
                [runner := FakeRunner()],
                limits=limits(max_wait_s=0.0015),
                cost=known_cost(),
                name="fake",
                clock=going_clock,
            )
            batcher.start()
            await settle()
            async with asyncio.timeout(1):
                await embed(batcher, "a")
            assert runner.passes == [["a"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_passes_know_nothing_of_the_request_that_made_the_slots_ask(self):
        """What is logged under a pass is of all its entries, and not of whoever came last."""
        caller = ContextVar("caller", default="nobody")

        class Telling(FakeRunner):
            async def run(self, payloads: Sequence[object], **how: bool) -> RunResult:
                self.passes.append([caller.get()])
                return await super().run(payloads, **how)

        async def main():
            batcher = batcher_of(runner := Telling())
            caller.set("somebody")
            await embed(batcher, "a")
            assert runner.passes == [["nobody"], ["a"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_an_error_while_slots_ask_ends_in_every_caller(self, caplog: pytest.LogCaptureFixture):
        """Nothing that was accepted is left without an answer, whatever is wrong here."""

        class Broken(FakeRunner):
            @property
            def is_ready(self) -> bool:
                if self.passes:
                    raise ArithmeticError("a bug")
                return True

        async def main():
            batcher = batcher_of(Broken())
            outcomes = await asyncio.gather(
                *(embed(batcher, name, num_tokens=100) for name in "ab"), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [SubmissionOutcome, NoRunnersError]
            with pytest.raises(NoRunnersError) as refused:
                await embed(batcher, "late")
            assert str(refused.value.__cause__) == "a bug"
            await batcher.stop(1)

        on_virtual_time(main)
        assert caplog.messages == ["fake cannot go on"]


class TestLostRunners:
    def test_a_runner_that_is_away_at_the_start_does_not_count(self):
        """Or the others would stage nothing: it could run at once on the one that seems to be idle."""

        async def main():
            away, there = LayeredFake(restart_s=60), LayeredFake()
            away.die()
            batcher = batcher_of(away, there)
            caller = asyncio.create_task(embed(batcher, *"abc", num_tokens=100))
            await settle()
            assert [name for name, _ in there.log] == ["a handed", "b handed", "a begins"]
            await caller
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_pass_whose_runner_died_runs_on_another_slot_meanwhile(self):
        async def main():
            dying, other = FakeRunner(dies_at=[0], restart_s=60), FakeRunner()
            batcher = batcher_of(dying, other)
            began_s = now_s()
            assert (await embed(batcher, "a")).results == ("vector of a",)
            assert (dying.passes, other.passes) == ([["a"]], [["a"]])
            assert now_s() - began_s == pytest.approx(0.040)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_runner_that_died_idle_is_found_out_before_it_is_handed_anything(self):
        async def main():
            batcher = batcher_of(dead := FakeRunner(restart_s=60), other := FakeRunner())
            await embed(batcher, "a")
            assert dead.passes == [["a"]]
            dead.die()
            began_s = now_s()
            await embed(batcher, "b")
            assert now_s() - began_s == pytest.approx(0.020)
            assert other.passes == [["b"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_runner_that_is_away_comes_back_without_being_asked_again(self):
        """What waits for it runs the moment it is there, though nothing else happens by then."""

        async def main():
            batcher = batcher_of(runner := FakeRunner(restart_s=7))
            await settle()
            runner.die()
            began_s = now_s()
            await embed(batcher, "a")
            assert now_s() - began_s == pytest.approx(7 + 0.020)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_slot_takes_nothing_while_its_runner_restarts(self):
        """What it would take could not run, and might run elsewhere or gather company."""

        async def main():
            batcher = batcher_of(runner := FakeRunner(dies_at=[0], restart_s=5))
            began_s = now_s()
            first = asyncio.create_task(embed(batcher, "a"))
            await asyncio.sleep(1)
            query = asyncio.create_task(embed(batcher, "query", lane=QUERY))
            await settle()
            assert batcher.statistics().num_running_passes == 0
            await asyncio.gather(first, query)
            assert runner.passes == [["a"], ["query"], ["a"]]
            assert now_s() - began_s == pytest.approx(5 + 3 * 0.020)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_while_a_runner_restarts_the_others_take_passes_ahead_and_the_lane_holds_less(self):
        async def main():
            dying, other = LayeredFake(dies_at=[0], restart_s=60), LayeredFake()
            batcher = batcher_of(dying, other)
            max_tokens = batcher.lane_load(DOCUMENT).max_waiting_tokens
            caller = asyncio.create_task(embed(batcher, *"abcdef", num_tokens=100))
            await settle()
            assert batcher.statistics().num_staged_passes == 2
            await asyncio.sleep(0.120)
            assert batcher.lane_load(DOCUMENT).max_waiting_tokens == max_tokens // 2
            assert [batcher.statistics().num_running_passes, batcher.statistics().num_staged_passes] == [2, 1]
            await caller
            await asyncio.sleep(60)
            assert batcher.lane_load(DOCUMENT).max_waiting_tokens == max_tokens
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_runner_that_dies_while_it_has_nothing_to_do_is_missed_as_soon_as_it_is_wanted(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner(), limits=limits(max_waiting_entries=1))
            await settle()
            runner.die()
            first = asyncio.create_task(embed(batcher, "first"))
            await settle()
            with pytest.raises(QueueFullError) as refused:
                await embed(batcher, "second")
            assert refused.value.retry_after_s == pytest.approx(10.0 + 0.110), "a restart that nobody knows"
            assert (await first).queue_s == pytest.approx(1.0)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_what_a_restart_took_is_told_at_the_next_one(self):
        async def main():
            batcher = Batcher(
                [runner := FakeRunner(restart_s=3)],
                limits=limits(max_waiting_entries=1),
                cost=known_cost(),
                clock=now_s,
                restart_s=20,
            )
            batcher.start()
            for expected_s in (20, 3):
                await settle()
                runner.die()
                first = asyncio.create_task(embed(batcher, "first"))
                await settle()
                with pytest.raises(QueueFullError) as refused:
                    await embed(batcher, "second")
                assert refused.value.retry_after_s == pytest.approx(expected_s + 0.110)
                await first
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_runner_that_dies_before_it_comes_to_a_pass_costs_the_pass_nothing(self):
        """It is handed over in a task of its own, and the runner may be gone when that begins."""

        class Elusive(FakeRunner):
            num_escapes = 0

            async def run(self, payloads: Sequence[object], **how: bool) -> RunResult:
                if self.num_escapes < 5:
                    self.num_escapes += 1
                    self.die()
                    raise RunnerLostError("the runner is not ready", has_begun=False)
                return await super().run(payloads, **how)

        async def main():
            batcher = batcher_of(Elusive())
            assert (await embed(batcher, "a")).results == ("vector of a",)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_an_item_that_kills_runners_fails_alone_and_its_neighbours_do_not(self):
        async def main():
            batcher = batcher_of(FakeRunner(), FakeRunner())
            killer = asyncio.create_task(batcher.submit(work(Item(kills=True)), lane=DOCUMENT))
            good = asyncio.create_task(embed(batcher, *"abcdef"))
            with pytest.raises(EntryFailedError) as failed:
                await killer
            assert isinstance(failed.value.__cause__, RunnerLostError)
            assert len((await good).results) == 6
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_pass_that_the_runner_itself_cancels_counts_as_lost(self):
        """A future that a restart cancels must not end the slot that waits for it."""

        class Cancelling(FakeRunner):
            async def run(self, payloads: Sequence[object], **how: bool) -> RunResult:
                if not self.passes:
                    self.passes.append(["cancelled"])
                    raise asyncio.CancelledError
                return await super().run(payloads, **how)

        async def main():
            batcher = batcher_of(runner := Cancelling())
            assert (await embed(batcher, "a")).results == ("vector of a",)
            assert runner.passes == [["cancelled"], ["a"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_slot_that_ends_under_a_pass_leaves_the_pass_to_the_others(
        self, caplog: pytest.LogCaptureFixture
    ):
        class Fatal(BaseException):
            """Like the exceptions that pass through every ``except Exception``."""

        class Ending(FakeRunner):
            async def run(self, payloads: Sequence[object], **how: bool) -> RunResult:
                raise Fatal

        async def main():
            batcher = batcher_of(Ending(), other := FakeRunner())
            max_tokens = batcher.lane_load(DOCUMENT).max_waiting_tokens
            assert (await embed(batcher, "a")).results == ("vector of a",)
            assert other.passes == [["a"]]
            assert batcher.statistics().num_running_passes == 0
            assert batcher.lane_load(DOCUMENT).max_waiting_tokens == max_tokens // 2
            await batcher.stop(1)

        on_virtual_time(main)
        assert caplog.messages == ["fake slot 0 has ended"]

    def test_when_the_last_runner_is_gone_for_good_everybody_is_told(self, caplog: pytest.LogCaptureFixture):
        class Doomed(FakeRunner):
            @property
            def is_ready(self) -> bool:
                return not self.passes

            async def wait_ready(self) -> None:
                if self.passes:
                    raise OSError("no such device")

        async def main():
            batcher = batcher_of(Doomed(), Doomed())
            requests = [
                asyncio.create_task(embed(batcher, name, num_tokens=100, lane=DOCUMENT)) for name in "abc"
            ]
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [
                SubmissionOutcome,
                SubmissionOutcome,
                NoRunnersError,
            ]
            with pytest.raises(NoRunnersError, match="none of the 2 runners is left") as refused:
                await embed(batcher, "late")
            assert str(refused.value.__cause__) == "no such device"
            await batcher.stop(1)

        on_virtual_time(main)
        assert caplog.messages == ["fake slot 0 has ended", "fake slot 1 has ended"]


class TestTwoLines:
    """What is out on a runner that takes a pass ahead, and lets queries overtake it or break in."""

    def test_the_next_pass_is_there_before_the_first_has_ended(self):
        """The device never waits for the gateway."""

        async def main():
            batcher = batcher_of(runner := LayeredFake())
            began_s = now_s()
            await embed(batcher, *"abc", num_tokens=100)
            assert runner.log[:2] == [("a handed", began_s), ("b handed", began_s)]
            assert runner.log[2:] == [
                ("a begins", began_s),
                ("b begins", pytest.approx(began_s + 0.110)),
                ("c handed", pytest.approx(began_s + 0.110)),
                ("c begins", pytest.approx(began_s + 0.220)),
            ]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_queries_overtake_a_staged_pass_together_at_the_last_moment(self):
        async def main():
            batcher = batcher_of(runner := LayeredFake(can_interrupt=False))
            documents = asyncio.create_task(embed(batcher, *"abcd", num_tokens=100))
            await settle()
            first = asyncio.create_task(embed(batcher, "first", lane=QUERY))
            await asyncio.sleep(0.1)
            second = await embed(batcher, "second", lane=QUERY)
            assert (await first).device_s == second.device_s
            assert runner.passes[:2] == [["a"], ["first", "second"]]
            # Composed 2 ms before the pass that runs was to end.
            assert second.queue_s == pytest.approx(0.110 - 0.1 - 0.002)
            await documents
            assert runner.passes == [["a"], ["first", "second"], ["b"], ["c"], ["d"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_query_breaks_into_a_running_pass_which_is_not_charged_for_it(self):
        async def main():
            batcher = batcher_of(runner := LayeredFake())
            documents = asyncio.create_task(embed(batcher, *"ab", num_tokens=100))
            await asyncio.sleep(0.025)
            began_s = now_s()
            query = await embed(batcher, "query", lane=QUERY)
            # To the end of the block that runs, and its own pass.
            assert now_s() - began_s == pytest.approx(0.005 + 0.020)
            assert query.device_s == pytest.approx(0.020)
            assert query.runner_wait_s == pytest.approx(0.005)
            assert (await documents).device_s == pytest.approx(0.220)
            assert runner.passes == [["a"], ["query"], ["b"]]
            shown = batcher.statistics()
            assert (shown.num_urgent_passes, shown.num_interruptions) == (1, 1)
            assert shown.wasted_s == 0, "no document waited in its lane"
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_query_goes_to_the_idle_runner_and_not_into_the_way_of_a_busy_one(self):
        async def main():
            busy, idle = LayeredFake(), LayeredFake()
            batcher = batcher_of(busy, idle)
            documents = asyncio.create_task(embed(batcher, "a", num_tokens=100))
            await settle()
            await embed(batcher, "query", lane=QUERY)
            assert (busy.passes, idle.passes) == ([["a"]], [["query"]])
            await documents
            await batcher.stop(1)

        on_virtual_time(main)

    def test_documents_are_staged_as_soon_as_queries_have_gone_elsewhere(self):
        """They were kept back for the queries; nothing else would wake the slot before its pass ends."""

        async def main():
            staging, yielding = LayeredFake(can_interrupt=False), LayeredFake()
            batcher = batcher_of(staging, yielding)
            requests = [asyncio.create_task(embed(batcher, "a", "b", num_tokens=100))]
            await asyncio.sleep(0.05)
            came_s = now_s()
            requests.append(asyncio.create_task(embed(batcher, "query", lane=QUERY)))
            requests.append(asyncio.create_task(embed(batcher, "c", num_tokens=100)))
            await settle()
            assert ("urgent query handed", came_s) in yielding.log
            assert ("c handed", came_s) in staging.log
            await asyncio.gather(*requests)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_death_fails_every_pass_that_was_out_and_blames_only_what_had_begun(self):
        """Or a document that was staged behind two deaths would be given up without having run once."""

        async def main():
            batcher = batcher_of(runner := LayeredFake(restart_s=1))
            killer = asyncio.create_task(
                batcher.submit(work(Item(name="killer", num_tokens=100, kills=True)), lane=DOCUMENT)
            )
            await settle()
            staged = asyncio.create_task(embed(batcher, "staged", num_tokens=100))
            with pytest.raises(EntryFailedError) as failed:
                await killer
            assert isinstance(failed.value.__cause__, RunnerLostError)
            assert (await staged).results == ("vector of staged",)
            assert runner.passes.count(["killer"]) == 2
            assert batcher.statistics().lanes[DOCUMENT].num_done == 1
            await batcher.stop(1)

        on_virtual_time(main)

    def test_what_is_staged_is_given_up_at_the_end_of_the_drain_time(self, caplog: pytest.LogCaptureFixture):
        async def main():
            batcher = batcher_of(LayeredFake())
            caller = asyncio.create_task(embed(batcher, *"abc", num_tokens=100))
            await settle()
            await batcher.stop(drain_s=0.150)
            with pytest.raises(ShuttingDownError):
                await caller
            assert batcher.statistics().num_running_passes == 0
            assert [task for task in asyncio.all_tasks() if "fake" in task.get_name()] == []

        on_virtual_time(main)
        assert caplog.messages == ["fake: 2 entries are given up at shutdown"]


class TestDeadlines:
    def test_a_deadline_is_answered_when_it_comes_even_if_every_slot_is_busy(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner(pace=10))
            long = asyncio.create_task(embed(batcher, "long", num_tokens=100))
            await settle()
            began_s = now_s()
            with pytest.raises(DeadlineError) as expired:
                await embed(batcher, "a", timeout_s=0.2, lane=QUERY)
            assert now_s() - began_s == pytest.approx(0.2)
            assert str(expired.value) == "the deadline passed: there was no result after 200 ms"
            await long
            assert runner.passes == [["long"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_an_earlier_deadline_that_comes_later_is_not_missed(self):
        async def main():
            batcher = batcher_of(FakeRunner(pace=10))
            long = asyncio.create_task(embed(batcher, "long", num_tokens=500, timeout_s=100))
            await settle()
            patient = asyncio.create_task(embed(batcher, "patient", timeout_s=3))
            await settle()
            with pytest.raises(DeadlineError) as expired:
                await embed(batcher, "hasty", timeout_s=1)
            assert expired.value.waited_s == pytest.approx(1)
            with pytest.raises(DeadlineError) as expired:
                await patient
            assert expired.value.waited_s == pytest.approx(3)
            await long
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_deadline_that_cannot_be_met_is_told_at_once(self):
        """What would be computed for nobody is not let in, and the caller may ask elsewhere."""

        async def main():
            batcher = batcher_of(runner := FakeRunner())
            long = asyncio.create_task(embed(batcher, "long", num_tokens=1000))
            await settle()
            began_s = now_s()
            with pytest.raises(DeadlineUnmeetableError) as refused:
                await embed(batcher, "a", timeout_s=0.2, lane=QUERY)
            assert now_s() == began_s
            assert str(refused.value) == ("the deadline is in 200 ms, and the result is expected in 1030 ms")
            assert (refused.value.timeout_s, refused.value.predicted_s) == pytest.approx((0.2, 1.03))
            await long
            assert runner.passes == [["long"]]
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_running_item_is_answered_at_its_deadline_and_its_neighbours_are_served(self):
        async def main():
            batcher = batcher_of(FakeRunner())
            neighbour = asyncio.create_task(embed(batcher, "neighbour", num_tokens=50))
            with pytest.raises(DeadlineError):
                await embed(batcher, "hasty", num_tokens=50, timeout_s=0.01)
            assert batcher.statistics().num_running_passes == 1
            assert (await neighbour).results == ("vector of neighbour",)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_no_time_at_all_is_a_deadline_that_has_passed(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner())
            with pytest.raises(DeadlineError):
                await embed(batcher, "a", timeout_s=0)
            assert runner.passes == []
            await batcher.stop(1)

        on_virtual_time(main)


class TestCancellation:
    def test_a_caller_who_leaves_gives_up_what_waits_at_once(self):
        async def main():
            batcher = batcher_of(runner := FakeRunner())
            caller = asyncio.create_task(embed(batcher, *"abc", num_tokens=100))
            await settle()
            caller.cancel()
            await settle()
            lane = batcher.statistics().lanes[DOCUMENT]
            assert (lane.num_waiting, lane.num_waiting_tokens, lane.num_cancelled) == (0, 0, 3)
            assert (await embed(batcher, "next")).results == ("vector of next",)
            assert runner.passes == [["a"], ["next"]]
            await batcher.stop(1)

        on_virtual_time(main)

    @pytest.mark.parametrize("is_bad", [False, True])
    def test_a_caller_who_leaves_just_before_the_answer_does_not_harm_the_slot(self, is_bad: bool):
        callers: list[asyncio.Task[SubmissionOutcome]] = []

        class Unlucky(FakeRunner):
            async def run(self, payloads: Sequence[object], **how: bool) -> RunResult:
                result = await super().run(payloads, **how)
                callers[0].cancel()
                return result

        async def main():
            batcher = batcher_of(Unlucky())
            callers.append(asyncio.create_task(batcher.submit(work(Item(is_bad=is_bad)), lane=DOCUMENT)))
            with pytest.raises(asyncio.CancelledError):
                await callers[0]
            assert (await embed(batcher, "next")).results == ("vector of next",)
            await batcher.stop(1)

        on_virtual_time(main)

    def test_a_failure_that_meets_a_caller_who_just_left_is_not_logged_as_lost(self):
        """The event loop complains of exceptions that nobody looked at; on_virtual_time passes that on."""

        async def main():
            callers: list[asyncio.Task[SubmissionOutcome]] = []

            class RunnerThatCallersFlee(FakeRunner):
                async def run(self, payloads: Sequence[object], **how: bool) -> RunResult:
                    result = await super().run(payloads, **how)
                    # The pass ends, and the caller leaves before it could look at the failure.
                    asyncio.get_running_loop().call_soon(callers[0].cancel)
                    return result

            batcher = batcher_of(RunnerThatCallersFlee())
            callers.append(asyncio.create_task(batcher.submit(work(Item(is_bad=True)), lane=DOCUMENT)))
            with pytest.raises(asyncio.CancelledError):
                await callers[0]
            callers.clear()
            await batcher.stop(1)
            gc.collect()

        on_virtual_time(main)


class TestStop:
    def test_what_is_queued_and_running_finishes_within_the_drain_time(self):
        async def main():
            batcher = batcher_of(FakeRunner(), limits=limits(max_wait_s=9))
            caller = asyncio.create_task(embed(batcher, *"abc", num_tokens=60))
            await settle()
            stopping = asyncio.create_task(batcher.stop(drain_s=10))
            await settle()
            with pytest.raises(ShuttingDownError, match="the server is shutting down"):
                await embed(batcher, "late")
            began_s = now_s()
            await stopping
            assert (await caller).results == tuple(f"vector of {name}" for name in "abc")
            assert now_s() - began_s == pytest.approx(3 * 0.070)

        on_virtual_time(main)

    def test_what_takes_longer_than_the_drain_time_is_told_and_given_up(
        self, caplog: pytest.LogCaptureFixture
    ):
        async def main():
            batcher = batcher_of(FakeRunner())
            caller = asyncio.create_task(embed(batcher, *"abc", num_tokens=1000))
            await settle()
            began_s = now_s()
            await batcher.stop(drain_s=1.5)
            with pytest.raises(ShuttingDownError):
                await caller
            assert now_s() - began_s == pytest.approx(1.5)
            assert repr(batcher) == (
                "<Batcher fake, 0 of 1 slots busy: "
                "<Scheduler query: 0 waiting, document: 0 waiting, batch: 0 waiting, 0 running>>"
            )

        on_virtual_time(main)
        assert caplog.messages == ["fake: 2 entries are given up at shutdown"]

    def test_an_idle_batcher_stops_at_once_and_twice_is_no_harm(self):
        async def main():
            batcher = batcher_of(FakeRunner())
            began_s = now_s()
            await batcher.stop(drain_s=60)
            await batcher.stop(drain_s=60)
            assert now_s() == began_s
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

        on_virtual_time(main)


class TestReports:
    def test_every_pass_is_reported_with_its_lanes_times_and_error(self):
        reports: list[PassReport] = []

        async def main():
            batcher = batcher_of(FakeRunner(), on_pass=reports.append)
            first = asyncio.create_task(embed(batcher, "first", lane=QUERY))
            await settle()
            await asyncio.gather(first, embed(batcher, "query", lane=QUERY), embed(batcher, "a", "b"))
            with pytest.raises(EntryFailedError):
                await batcher.submit(work(Item(raises=True)), lane=BATCH)
            await batcher.stop(1)

        on_virtual_time(main)
        _, mixed, bad = reports
        assert mixed.num_entries == {QUERY: 1, DOCUMENT: 2}
        assert mixed.num_tokens == {QUERY: 10, DOCUMENT: 20}
        assert (mixed.run_s, mixed.device_s, mixed.predicted_s) == pytest.approx((0.040, 0.040, 0.040))
        assert mixed.oldest_wait_s == pytest.approx(0.020)
        assert (mixed.slot, mixed.error) == (0, None)
        assert (bad.num_entries, bad.device_s, bad.error) == ({BATCH: 1}, 0.0, "ArithmeticError")


items = st.builds(
    Item,
    num_tokens=st.integers(1, 130),
    raises=st.sampled_from([False] * 15 + [True]),
    kills=st.sampled_from([False] * 15 + [True]),
    is_bad=st.sampled_from([False] * 15 + [True]),
)


@settings(max_examples=120, deadline=None, phases=PHASES)
@given(
    submissions=st.lists(
        st.tuples(
            st.floats(0, 3),
            st.sampled_from(Lane),
            st.lists(items, min_size=1, max_size=6),
            st.none() | st.floats(0, 2),
            st.none() | st.floats(0, 2),
            st.sampled_from(["", "a", "b"]),
        ),
        max_size=25,
    ),
    dies_at=st.frozensets(st.integers(0, 10), max_size=3),
    kinds=st.lists(st.sampled_from(["simple", "staging", "yielding"]), min_size=1, max_size=3),
    max_wait_s=st.sampled_from([0.0, 0.1]),
    stop_at_s=st.none() | st.floats(0, 4),
)
def test_every_submission_ends_in_its_own_results_or_in_an_error_it_deserves(
    submissions, dies_at, kinds, max_wait_s, stop_at_s
):
    """Nothing hangs (the clock would find out), nothing is mixed up, and nothing is left behind."""

    async def main():
        runners = [
            FakeRunner(dies_at=dies_at, restart_s=0.3)
            if kind == "simple"
            else LayeredFake(can_interrupt=kind == "yielding", dies_at=dies_at, restart_s=0.3)
            for kind in kinds
        ]
        bounds = limits(max_wait_s=max_wait_s, max_waiting_entries=30, max_waiting_s=2.5)
        batcher = batcher_of(*runners, limits=bounds)

        async def call(
            number: int, at_s: float, lane: Lane, items: list[Item], timeout_s: float | None, tenant: str
        ):
            await asyncio.sleep(at_s)
            own = [Item(**(vars(item) | {"name": f"{number}.{i}"})) for i, item in enumerate(items)]
            outcome = await batcher.submit(work(*own), lane=lane, timeout_s=timeout_s, tenant=tenant)
            assert outcome.results == tuple(f"vector of {item.name}" for item in own)
            assert outcome.queue_s >= 0
            assert outcome.device_s > 0

        calls = []
        for number, (at_s, lane, items, timeout_s, cancelled_after_s, tenant) in enumerate(submissions):
            task = asyncio.create_task(call(number, at_s, lane, items, timeout_s, tenant))
            if cancelled_after_s is not None:
                asyncio.get_running_loop().call_later(at_s + cancelled_after_s, task.cancel)
            calls.append(task)
        if stop_at_s is not None:
            await asyncio.sleep(stop_at_s)
            await batcher.stop(0.1)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        for end, (_, _, items, timeout_s, cancelled_after_s, _) in zip(ends, submissions, strict=True):
            has_culprit = any(item.raises or item.kills or item.is_bad for item in items)
            match end:
                case None:
                    assert not has_culprit
                case EntryFailedError():
                    assert has_culprit or isinstance(end.__cause__, RunnerLostError)
                    assert isinstance(end.__cause__, RunnerLostError) or (
                        items[end.index].raises or items[end.index].is_bad
                    )
                case DeadlineUnmeetableError():
                    assert timeout_s is not None
                    assert end.predicted_s > timeout_s - 1e-6
                case DeadlineError():
                    assert timeout_s is not None
                    assert end.waited_s >= timeout_s - 1e-6
                case asyncio.CancelledError():
                    assert cancelled_after_s is not None
                case ShuttingDownError():
                    assert stop_at_s is not None
                case _:
                    assert isinstance(end, QueueFullError), end
        if stop_at_s is None:
            await batcher.stop(0.0)
        for lane in batcher.statistics().lanes.values():
            assert (lane.num_waiting, lane.num_waiting_tokens, lane.num_running) == (0, 0, 0)
        assert not batcher._owners

    on_virtual_time(main)

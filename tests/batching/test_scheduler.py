"""Who runs next: one rule of the scheduler a test. Passes cost 10 ms and 1 ms a token throughout."""

import math
import sys
from collections.abc import Callable

import pytest

from batching import (
    CostModel,
    Entry,
    Lane,
    LaneLoad,
    Limits,
    Pass,
    QueueFullError,
    Scheduler,
    SubmissionTooLargeError,
)
from tests.batching.fakes import entry, known_cost, limits, names

QUERY, DOCUMENT, BATCH = Lane


def scheduler_with(*entries: Entry, limits: Limits = limits(), num_slots: int = 1) -> Scheduler:  # noqa: B008 - frozen
    scheduler = Scheduler(limits, cost=known_cost(), num_slots=num_slots)
    for each in entries:
        scheduler.admit([each], each.arrival_s)
    return scheduler


def run_next(scheduler: Scheduler, now_s: float = 0.0) -> list[object]:
    """Run the next pass to its end; returns the names in it."""
    composed = take(scheduler, now_s)
    scheduler.finish(composed, device_s=composed.predicted_s)
    return names(composed.entries)


def take(scheduler: Scheduler, now_s: float = 0.0) -> Pass:
    composed = scheduler.next_pass(now_s)
    assert composed is not None
    return composed


class TestComposition:
    def test_a_query_goes_before_documents_that_came_first(self):
        scheduler = scheduler_with(entry("document", num_tokens=90), entry("query", lane=QUERY))
        assert run_next(scheduler) == ["query"]

    def test_queries_run_by_deadline_then_by_arrival(self):
        scheduler = scheduler_with(
            entry("first", lane=QUERY, num_tokens=60),
            entry("second", lane=QUERY, num_tokens=60),
            entry("urgent", lane=QUERY, num_tokens=60, deadline_s=5),
        )
        assert [run_next(scheduler) for _ in range(3)] == [["urgent"], ["first"], ["second"]]

    def test_queries_are_never_passed_by_smaller_ones(self):
        scheduler = scheduler_with(
            *(entry(str(size), lane=QUERY, num_tokens=size) for size in (60, 50, 40)),
        )
        assert [run_next(scheduler), run_next(scheduler)] == [["60"], ["50", "40"]]

    def test_a_query_pass_is_filled_with_documents_only_to_the_fill_size(self):
        """What fits below saturation is nearly free; what goes beyond it is waited for."""
        scheduler = scheduler_with(
            entry("query", lane=QUERY, num_tokens=10),
            *(entry(f"document {i}", num_tokens=12) for i in range(3)),
            limits=limits(max_pass_tokens=100, fill_tokens=40),
        )
        assert run_next(scheduler) == ["query", "document 0", "document 1"]

    def test_batch_work_takes_what_documents_leave_of_a_query_pass(self):
        scheduler = scheduler_with(
            entry("batch", lane=BATCH, num_tokens=10),
            entry("document", num_tokens=20),
            entry("query", lane=QUERY, num_tokens=10),
        )
        assert run_next(scheduler) == ["query", "document", "batch"]

    def test_without_queries_documents_fill_a_whole_pass_oldest_first(self):
        scheduler = scheduler_with(*(entry(str(i), num_tokens=30) for i in range(5)))
        assert [run_next(scheduler), run_next(scheduler)] == [["0", "1", "2"], ["3", "4"]]

    def test_the_rest_of_a_pass_goes_to_whatever_fills_it_best(self):
        scheduler = scheduler_with(
            *(entry(str(size), num_tokens=size) for size in (70, 50, 10, 28, 20)),
        )
        assert run_next(scheduler) == ["70", "28"]

    def test_only_so_many_entries_are_looked_at_behind_the_first_that_does_not_fit(self):
        """Composing a pass must not take longer the longer the backlog is."""
        scheduler = scheduler_with(
            entry("large", num_tokens=90),
            *(entry("misfit", num_tokens=50) for _ in range(64)),
            entry("fits", num_tokens=10),
        )
        assert run_next(scheduler) == ["large"]

    def test_an_entry_larger_than_a_pass_runs_alone(self):
        scheduler = scheduler_with(entry("huge", num_tokens=1000), entry("small", num_tokens=1))
        assert [run_next(scheduler), run_next(scheduler)] == [["huge"], ["small"]]

    def test_one_entry_a_pass_is_what_switching_batching_off_means(self):
        scheduler = scheduler_with(
            entry("query", lane=QUERY),
            entry("a", num_tokens=1),
            entry("b", num_tokens=1),
            limits=limits(max_pass_entries=1),
        )
        assert [run_next(scheduler) for _ in range(3)] == [["query"], ["a"], ["b"]]

    def test_a_long_document_is_overtaken_sixteen_times_and_then_no_more(self):
        """Short ones fit the fill of every query pass; the long one at their head must get its turn."""
        scheduler = scheduler_with(
            entry("long", num_tokens=100), *(entry("short", num_tokens=10) for _ in range(900))
        )
        order: list[object] = []
        while "long" not in order:
            scheduler.admit([entry("query", lane=QUERY, num_tokens=30)], 0.0)
            order += run_next(scheduler)
        assert order.count("short") == 16
        # From then on credit is earned: 100 tokens cost 110 ms, and each query pass of 40 ms earns 6 ms.
        assert order.count("query") <= 16 + math.ceil(0.110 / (0.15 * 0.040)) + 1

    def test_nothing_waits_nothing_runs(self):
        assert scheduler_with().next_pass(0.0) is None


class TestShares:
    def test_documents_lead_a_pass_once_their_share_of_the_time_pays_for_it(self):
        """A flood of queries slows documents down but never stops them."""
        scheduler = scheduler_with(
            *(entry("document", num_tokens=100) for _ in range(20)),
            limits=limits(document_share=0.2, fill_tokens=0),
        )
        order: list[object] = []
        for _ in range(60):
            scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 0.0)
            order.append(run_next(scheduler)[0])
        # A pass costs 110 ms either way, so a fifth of the time is one pass in five.
        assert order[:10] == [*["query"] * 5, "document", *["query"] * 4]
        assert order.count("document") == pytest.approx(60 / 5, abs=1)

    def test_documents_that_ride_with_queries_use_up_their_share(self):
        """Filled passes already give documents more than they are owed: no turn of their own."""
        scheduler = scheduler_with(
            *(entry("document", num_tokens=20) for _ in range(200)), limits=limits(fill_tokens=50)
        )
        for _ in range(50):
            scheduler.admit([entry("query", lane=QUERY, num_tokens=30)], 0.0)
            assert run_next(scheduler)[0] == "query"

    def test_queries_ride_along_on_what_a_turn_of_the_documents_leaves(self):
        scheduler = scheduler_with(
            entry("document", num_tokens=60), limits=limits(document_share=0.9, batch_share=0, fill_tokens=0)
        )
        order: list[list[object]] = []
        for _ in range(3):
            scheduler.admit([entry("query", lane=QUERY, num_tokens=40)], 0.0)
            order.append(run_next(scheduler))
        # 70 ms are owed for the document; a query pass of 50 ms earns 45 ms.
        assert order == [["query"], ["query"], ["document", "query"]]

    def test_batch_work_gets_its_small_share_behind_documents(self):
        scheduler = scheduler_with(
            *(entry("document", num_tokens=100) for _ in range(400)),
            *(entry("batch", lane=BATCH, num_tokens=100) for _ in range(50)),
            limits=limits(batch_share=0.05),
        )
        order = [run_next(scheduler)[0] for _ in range(200)]
        assert order.count("batch") == pytest.approx(10, abs=1)

    def test_a_share_is_not_saved_up_while_nothing_waits(self):
        """Documents that come after an hour of queries are owed nothing for that hour."""
        scheduler = scheduler_with(limits=limits(fill_tokens=0))
        for _ in range(100):
            scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 0.0)
            run_next(scheduler)
        scheduler.admit([entry("document", num_tokens=100)], 0.0)
        scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 0.0)
        assert run_next(scheduler) == ["query"]

    def test_the_measured_time_counts_and_not_the_prediction(self):
        """Queries that take ten times as long as predicted owe documents ten times as much."""
        scheduler = scheduler_with(
            entry("document", num_tokens=100), limits=limits(document_share=0.2, fill_tokens=0)
        )
        scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 0.0)
        first = take(scheduler)
        scheduler.finish(first, device_s=10 * first.predicted_s)
        scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 0.0)
        assert run_next(scheduler)[0] == "document"


class TestLinger:
    def test_documents_wait_for_company_only_as_long_as_allowed(self):
        scheduler = scheduler_with(entry("document", arrival_s=1.0), limits=limits(max_wait_s=0.05))
        assert scheduler.next_pass(1.01) is None
        assert scheduler.next_event_s(1.01) == 1.05
        assert run_next(scheduler, 1.05) == ["document"]

    def test_a_full_pass_does_not_wait(self):
        scheduler = scheduler_with(
            *(entry(str(i), num_tokens=50) for i in range(2)), limits=limits(max_wait_s=9)
        )
        assert run_next(scheduler) == ["0", "1"]

    def test_a_query_never_lingers_and_takes_waiting_documents_along(self):
        scheduler = scheduler_with(entry("document"), entry("query", lane=QUERY), limits=limits(max_wait_s=9))
        assert run_next(scheduler) == ["query", "document"]

    def test_nothing_waits_for_company_that_is_not_to_come(self):
        scheduler = scheduler_with(entry("document"), limits=limits(max_wait_s=9))
        scheduler.stop_lingering()
        assert run_next(scheduler) == ["document"]

    def test_a_linger_that_is_over_is_no_event(self):
        """Or whoever waits for it while all slots are busy would wake up again and again."""
        scheduler = scheduler_with(entry("document"), limits=limits(max_wait_s=0.05))
        assert scheduler.next_event_s(0.05) is None


class TestAdmission:
    def test_a_submission_is_admitted_whole_or_not_at_all(self):
        scheduler = scheduler_with(entry(), entry(), limits=limits(max_waiting_entries=4))
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry(), entry(), entry()], 0.0)
        assert str(refused.value) == (
            "the document lane is full: 2 entries are waiting, 4 are allowed, and the request brings 3"
        )
        assert scheduler.statistics(0.0).lanes[DOCUMENT].num_waiting == 2
        assert scheduler.statistics(0.0).lanes[DOCUMENT].num_refused == 3

    def test_a_full_document_lane_does_not_keep_queries_out(self):
        scheduler = scheduler_with(entry(), limits=limits(max_waiting_entries=1))
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        assert run_next(scheduler)[0] == "query"

    def test_tokens_are_bounded_as_well_as_entries(self):
        scheduler = scheduler_with(entry(num_tokens=60), limits=limits(max_waiting_tokens=100))
        with pytest.raises(QueueFullError, match="60 tokens are waiting, 100 are allowed, and the request"):
            scheduler.admit([entry(num_tokens=41)], 0.0)
        scheduler.admit([entry(num_tokens=40)], 0.0)

    def test_what_can_never_fit_is_told_so_even_if_the_lane_is_full(self):
        """A client that is told to come back would come back for ever."""
        scheduler = scheduler_with(entry(), limits=limits(max_waiting_entries=1))
        with pytest.raises(SubmissionTooLargeError) as refused:
            scheduler.admit([entry(), entry()], 0.0)
        assert str(refused.value) == "the request brings 2 entries; the document lane holds at most 1"

    def test_an_entry_that_is_cancelled_makes_room_at_once(self):
        waiting = entry()
        scheduler = scheduler_with(waiting, limits=limits(max_waiting_entries=1))
        scheduler.cancel(waiting)
        scheduler.admit([entry("next")], 0.0)
        assert run_next(scheduler) == ["next"]

    @pytest.mark.parametrize(("num_slots", "wait_s"), [(1, 0.220), (2, 0.110)])
    def test_the_wait_is_the_time_until_there_is_room(self, num_slots: int, wait_s: float):
        """Of ten full passes two must have run before twenty more fit; 110 ms each, by all slots."""
        scheduler = scheduler_with(
            *(entry() for _ in range(100)), limits=limits(max_waiting_entries=100), num_slots=num_slots
        )
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry() for _ in range(20)], 0.0)
        assert refused.value.retry_after_s == pytest.approx(wait_s)

    def test_the_wait_counts_what_runs_and_the_queries_ahead(self):
        """2 ms of 110 ms are over, 110 ms of queries are ahead, and 110 ms of documents must go."""
        scheduler = scheduler_with(
            *(entry() for _ in range(100)),
            limits=limits(max_waiting_entries=100, document_share=0.5),
        )
        take(scheduler, now_s=0.0)
        scheduler.admit([entry() for _ in range(10)], 0.0)
        scheduler.admit([entry(lane=QUERY) for _ in range(10)], 0.0)
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry() for _ in range(10)], 0.002)
        assert refused.value.retry_after_s == pytest.approx(0.108 + 0.110 + 0.110)

    def test_the_wait_for_documents_is_bounded_by_their_share(self):
        """A thousand queries ahead take 11 s; half of the device needs 220 ms for the documents."""
        bounds = Limits(
            max_pass_tokens=100,
            fill_tokens=0,
            shares={DOCUMENT: 0.5},
            max_waiting_entries={QUERY: 1000, DOCUMENT: 10, BATCH: 1},
        )
        scheduler = scheduler_with(limits=bounds)
        scheduler.admit([entry() for _ in range(10)], 0.0)
        scheduler.admit([entry(lane=QUERY) for _ in range(1000)], 0.0)
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry() for _ in range(10)], 0.0)
        assert refused.value.retry_after_s == pytest.approx(0.110 / 0.5)

    def test_an_empty_submission_changes_nothing(self):
        scheduler = scheduler_with()
        scheduler.admit([], 0.0)
        assert scheduler.next_pass(0.0) is None


class TestDeadlines:
    def test_an_entry_is_not_run_once_its_deadline_has_come(self):
        stale = entry("stale", deadline_s=1.0)
        scheduler = scheduler_with(stale, entry("fresh"))
        assert run_next(scheduler, now_s=1.0) == ["fresh"]
        assert scheduler.expire(1.0) == [stale]

    def test_an_expired_entry_is_handed_out_once(self):
        stale = entry(deadline_s=1.0)
        scheduler = scheduler_with(stale)
        assert scheduler.expire(0.9) == []
        assert scheduler.expire(1.1) == [stale]
        assert scheduler.expire(1.2) == []

    def test_an_entry_that_expires_while_it_runs_is_answered_then_and_not_counted_as_done(self):
        running = entry(deadline_s=1.0)
        scheduler = scheduler_with(running)
        composed = take(scheduler)
        assert scheduler.expire(1.0) == [running]
        scheduler.finish(composed, device_s=2.0)
        lane = scheduler.statistics(2.0).lanes[DOCUMENT]
        assert (lane.num_expired, lane.num_done) == (1, 0)

    def test_the_next_event_is_the_earliest_deadline_of_what_is_still_there(self):
        gone = entry(deadline_s=1.0)
        scheduler = scheduler_with(gone, entry(deadline_s=2.0), entry(deadline_s=3.0))
        scheduler.cancel(gone)
        assert scheduler.next_event_s(0.0) == 2.0

    def test_expired_entries_that_nobody_has_fetched_are_an_event_now(self):
        scheduler = scheduler_with(entry(deadline_s=1.0))
        assert scheduler.next_pass(1.5) is None
        assert scheduler.next_event_s(1.5) == 1.5

    def test_nothing_with_a_deadline_no_event(self):
        assert scheduler_with(entry()).next_event_s(0.0) is None

    def test_deadlines_of_finished_entries_are_forgotten(self):
        """One entry that waits long must not keep the deadlines of all that came after it."""
        scheduler = scheduler_with(entry(lane=BATCH, num_tokens=100, deadline_s=1e6))
        for _ in range(2_000):
            query = entry(lane=QUERY, deadline_s=2e6)
            scheduler.admit([query], 0.0)
            scheduler.cancel(query)
        assert len(scheduler._deadlines) < 200


class TestFailedPasses:
    def test_a_pass_whose_runner_died_runs_once_more_whole_before_all_else(self):
        scheduler = scheduler_with(entry("a"), entry("b"))
        lost = take(scheduler)
        scheduler.admit([entry("new")], 0.0)
        assert scheduler.retry(lost, is_runner_lost=True) == ()
        assert [run_next(scheduler), run_next(scheduler)] == [["a", "b"], ["new"]]

    def test_a_pass_that_kills_a_second_runner_is_halved_until_the_culprit_stands_alone(self):
        scheduler = scheduler_with(*(entry(name) for name in "abcd"))
        ran, given_up = drain_with_culprit(scheduler, "c", is_runner_lost=True)
        assert ran == ["abcd", "abcd", "ab", "cd", "c", "d"]
        assert given_up == ["c"]

    def test_an_entry_alone_gets_one_more_runner_and_not_two(self):
        ran, given_up = drain_with_culprit(scheduler_with(entry("a")), "a", is_runner_lost=True)
        assert (ran, given_up) == (["a", "a"], ["a"])

    def test_a_pass_that_raised_is_halved_at_once(self):
        """The same pass would raise again, so to repeat it whole would be lost time."""
        scheduler = scheduler_with(*(entry(name) for name in "abcdefgh"))
        ran, given_up = drain_with_culprit(scheduler, "b", is_runner_lost=False)
        assert ran == ["abcdefgh", "abcd", "ab", "a", "b", "cd", "efgh"]
        assert given_up == ["b"]

    @pytest.mark.parametrize("num_entries", [2, 3, 31, 64, 500])
    def test_one_culprit_costs_at_most_two_passes_for_each_halving(self, num_entries: int):
        for culprit in {0, num_entries // 2, num_entries - 1}:
            scheduler = scheduler_with(
                *(entry(str(i), num_tokens=1) for i in range(num_entries)),
                limits=limits(max_pass_entries=num_entries, max_pass_tokens=num_entries, fill_tokens=0),
            )
            num_passes, given_up = 0, []
            while (composed := scheduler.next_pass(0.0)) is not None:
                num_passes += 1
                if str(culprit) in names(composed.entries):
                    given_up += names(scheduler.retry(composed, is_runner_lost=False))
                else:
                    scheduler.finish(composed, device_s=0.1)
            assert given_up == [str(culprit)]
            assert num_passes <= 1 + 2 * math.ceil(math.log2(num_entries))
            assert scheduler.statistics(0.0).lanes[DOCUMENT].num_done == num_entries - 1

    def test_an_entry_alone_that_raises_is_given_up(self):
        culprit = entry()
        scheduler = scheduler_with(culprit)
        assert scheduler.retry(take(scheduler), is_runner_lost=False) == (culprit,)
        assert scheduler.statistics(0.0).lanes[DOCUMENT].num_failed == 1

    def test_a_mixed_pass_falls_into_its_lanes_so_that_queries_are_free_of_documents_first(self):
        scheduler = scheduler_with(entry("query", lane=QUERY), entry("a"), entry("b"))
        ran, given_up = drain_with_culprit(scheduler, "b", is_runner_lost=False)
        assert ran == ["query" + "ab", "query", "ab", "a", "b"]
        assert given_up == ["b"]

    def test_new_entries_never_join_what_is_left_of_a_failed_pass(self):
        scheduler = scheduler_with(entry("a"), entry("b"))
        failed = take(scheduler)
        scheduler.retry(failed, is_runner_lost=False)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        scheduler.admit([entry("new")], 0.0)
        assert [run_next(scheduler) for _ in range(4)] == [["query"], ["a"], ["b"], ["new"]]

    def test_newer_documents_do_not_ride_with_queries_past_a_document_that_is_tried_again(self):
        """Riding would use up the share that the retry needs for its turn."""
        scheduler = scheduler_with(entry("again", num_tokens=5))
        scheduler.retry(take(scheduler), is_runner_lost=True)
        order: list[object] = []
        for _ in range(10):
            scheduler.admit([entry("query", lane=QUERY, num_tokens=10)], 0.0)
            scheduler.admit([entry("new", num_tokens=10)], 0.0)
            order += run_next(scheduler)
        assert order.index("again") < order.index("new")

    def test_a_failed_pass_whose_callers_left_is_not_tried_again(self):
        a, b = entry("a"), entry("b")
        scheduler = scheduler_with(a, b)
        failed = take(scheduler)
        scheduler.cancel(a)
        scheduler.retry(failed, is_runner_lost=False)
        assert run_next(scheduler) == ["b"]
        assert scheduler.next_pass(0.0) is None

    def test_a_survivor_of_a_failed_pass_is_not_blamed_before_it_stood_alone(self):
        """The culprit may have been the one that was cancelled under way."""
        culprit, survivor = entry("culprit"), entry("survivor")
        scheduler = scheduler_with(culprit, survivor)
        failed = take(scheduler)
        scheduler.cancel(culprit)
        assert scheduler.retry(failed, is_runner_lost=False) == ()
        assert run_next(scheduler) == ["survivor"]


class TestState:
    def test_statistics_account_for_every_entry(self):
        a, b, c, e = (entry(name, num_tokens=40) for name in "abce")
        d = entry("d", num_tokens=40, deadline_s=5.0)
        scheduler = scheduler_with(a, b, c, d, e)
        first = take(scheduler, 1.0)
        scheduler.finish(first, device_s=0.5, failed=[b])
        scheduler.cancel(c)
        scheduler.expire(5.0)
        lane = scheduler.statistics(6.0).lanes[DOCUMENT]
        assert (lane.num_admitted, lane.num_done, lane.num_failed) == (5, 1, 1)
        assert (lane.num_cancelled, lane.num_expired) == (1, 1)
        assert (lane.num_waiting, lane.num_waiting_tokens, lane.num_running) == (1, 40, 0)
        assert (lane.oldest_wait_s, lane.device_s) == (6.0, 0.5)

    def test_a_lanes_load_is_what_waits_in_it_now(self):
        gone = entry(lane=QUERY, num_tokens=5)
        scheduler = scheduler_with(
            gone, entry(lane=QUERY, num_tokens=70), entry(lane=QUERY, num_tokens=60), entry(num_tokens=9)
        )
        scheduler.cancel(gone)
        take(scheduler)
        assert scheduler.lane_load(QUERY) == LaneLoad(num_waiting=1, num_waiting_tokens=60)
        assert scheduler.lane_load(BATCH) == LaneLoad(num_waiting=0, num_waiting_tokens=0)

    def test_telling_a_lanes_load_costs_the_same_however_much_waits_and_runs(self):
        """It goes into the headers of every answer, and a busy server is the one that has many to give."""
        calls: list[int] = []
        for num_entries in (1, 500):
            waiting = [entry(lane=QUERY, num_tokens=9, deadline_s=1e9 - i) for i in range(num_entries)]
            scheduler = scheduler_with(*waiting, limits=limits(max_waiting_entries=1_000))
            take(scheduler)
            calls.append(num_calls(lambda: scheduler.lane_load(QUERY)))  # noqa: B023 - called at once
        assert calls[0] == calls[1]

    def test_device_time_of_a_mixed_pass_is_split_by_tokens(self):
        scheduler = scheduler_with(entry(lane=QUERY, num_tokens=10), entry(num_tokens=30))
        scheduler.finish(take(scheduler), device_s=0.4)
        lanes = scheduler.statistics(0.0).lanes
        assert (lanes[QUERY].device_s, lanes[DOCUMENT].device_s) == pytest.approx((0.1, 0.3))

    def test_cancelling_what_has_gone_changes_nothing(self):
        done = entry()
        scheduler = scheduler_with(done)
        scheduler.finish(take(scheduler), device_s=0.1)
        scheduler.cancel(done)
        assert scheduler.statistics(0.0).lanes[DOCUMENT].num_cancelled == 0

    def test_a_scheduler_prints_its_state(self):
        scheduler = scheduler_with(*(entry() for _ in range(12)), entry(lane=BATCH))
        take(scheduler)
        assert (
            repr(scheduler)
            == "<Scheduler query: 0 waiting, document: 2 waiting, batch: 1 waiting, 1 running>"
        )

    def test_passes_teach_the_cost_model(self):
        cost = CostModel(fixed_s=0.0, per_token_s=0.001)
        scheduler = Scheduler(limits(), cost=cost)
        scheduler.admit([entry(num_tokens=100)], 0.0)
        composed = take(scheduler)
        assert composed.predicted_s == pytest.approx(0.1)
        scheduler.finish(composed, device_s=0.3)
        scheduler.admit([entry(num_tokens=100)], 0.0)
        assert take(scheduler).predicted_s == pytest.approx(0.3)


def num_calls(function: Callable[[], object]) -> int:
    """How many functions run, and how often generators are resumed, until this one returns."""
    events: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda _frame, event, _arg: events.append(event))
    try:
        function()
    finally:
        sys.setprofile(before)
    return sum(event in ("call", "c_call") for event in events)


def drain_with_culprit(
    scheduler: Scheduler, culprit: str, *, is_runner_lost: bool
) -> tuple[list[str], list[object]]:
    """Run everything; passes with the culprit fail. Returns the passes, and who was given up."""
    ran: list[str] = []
    given_up: list[object] = []
    while (composed := scheduler.next_pass(0.0)) is not None:
        ran.append("".join(str(name) for name in names(composed.entries)))
        if culprit in names(composed.entries):
            given_up += names(scheduler.retry(composed, is_runner_lost=is_runner_lost))
        else:
            scheduler.finish(composed, device_s=composed.predicted_s)
    return ran, given_up

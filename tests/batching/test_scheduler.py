"""Who runs next: one rule of the scheduler a test. Passes cost 10 ms and 1 ms a token throughout."""

import gc
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from batching import (
    CostModel,
    DeadlineUnmeetableError,
    Entry,
    Lane,
    LaneLoad,
    Limits,
    Pass,
    QueueFullError,
    Scheduler,
    Shape,
    Slot,
    SubmissionTooLargeError,
)
from tests.batching.fakes import entry, known_cost, limits, names

QUERY, DOCUMENT, BATCH = Lane


def scheduler_with(
    *entries: Entry,
    limits: Limits = limits(),  # noqa: B008 - frozen
    slots: Sequence[Slot] = (Slot(),),
) -> Scheduler:
    scheduler = Scheduler(limits, cost=known_cost(), slots=slots)
    for each in entries:
        scheduler.admit([each], each.arrival_s)
    return scheduler


STAGING, YIELDING = Slot(depth=2), Slot(depth=2, can_interrupt=True)


def full_documents(names: str) -> list[Entry]:
    """One for each letter; each fills a pass."""
    return [entry(name, num_tokens=100) for name in names]


def run_next(scheduler: Scheduler, now_s: float = 0.0) -> list[object]:
    """Run the next pass to its end; returns the names in it."""
    composed = take(scheduler, now_s)
    scheduler.finish(composed, 0.0, device_s=composed.predicted_s)
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
            entry("urgent", lane=QUERY, num_tokens=60, deadline_s=0.08),
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
            entry("long", num_tokens=100),
            *(entry("short", num_tokens=10) for _ in range(900)),
            limits=limits(interruption_share=0.9),
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

    def test_what_a_turn_costs_follows_who_waits_for_it(self):
        """The credit that does not pay for a long document pays for the short one behind it."""
        scheduler = scheduler_with(
            long := entry("long", num_tokens=100),
            entry("short", num_tokens=10),
            limits=limits(document_share=0.5, batch_share=0, fill_tokens=0),
        )
        scheduler.admit([entry("query", lane=QUERY, num_tokens=50)], 0.0)
        assert run_next(scheduler) == ["query"]
        scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 0.0)
        # 30 ms are owed. The turn of the long document would cost 110, that of the short one costs 20.
        scheduler.next_event_s(0.0)
        scheduler.cancel(long)
        assert run_next(scheduler) == ["short"]

    def test_what_a_turn_costs_follows_the_prices(self):
        """A device that became slow gives less for the same credit."""
        cost = known_cost()
        bounds = limits(document_share=0.5, batch_share=0, fill_tokens=0)
        scheduler = Scheduler(bounds, cost=cost, slots=(Slot(), Slot()))
        scheduler.admit([entry("document", num_tokens=20)], 0.0)
        scheduler.admit([entry("query", lane=QUERY, num_tokens=100) for _ in range(2)], 0.0)
        first = take(scheduler)
        # 55 ms are owed, and the document costs 30, until passes take ten times as long.
        scheduler.next_event_s(0.0)
        for _ in range(60):
            cost.observe(first.shape, 10 * first.predicted_s)
        other = scheduler.next_pass(0.0, slot=1)
        assert other is not None
        assert names(other.entries) == ["query"]

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
        scheduler.finish(first, 0.0, device_s=10 * first.predicted_s)
        scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 0.0)
        assert run_next(scheduler)[0] == "document"


class TestTwoLines:
    """One slot that can take a pass ahead, or two; a pass of 100 tokens is full and takes 110 ms."""

    def test_a_full_pass_of_documents_is_staged_behind_the_one_that_runs_and_no_second(self):
        scheduler = scheduler_with(*full_documents("abc"), slots=[STAGING])
        assert names(take(scheduler).entries) == ["a"]
        assert names(take(scheduler).entries) == ["b"]
        assert scheduler.next_pass(0.0) is None
        assert scheduler.statistics(0.0).num_staged_passes == 1

    def test_nothing_is_staged_while_another_slot_is_idle(self):
        scheduler = scheduler_with(*full_documents("abc"), slots=[STAGING, STAGING])
        assert scheduler.next_pass(0.0, 0) is not None
        assert scheduler.next_pass(0.0, 0) is None
        assert scheduler.next_pass(0.0, 1) is not None
        assert scheduler.next_pass(0.0, 0) is not None

    def test_less_than_a_pass_waits_for_company_until_the_slot_is_free(self):
        """Staged now it would run as it is, however much comes in the meantime."""
        scheduler = scheduler_with(*full_documents("a"), entry("b", num_tokens=40), slots=[STAGING])
        running = take(scheduler)
        assert scheduler.next_pass(0.0) is None
        scheduler.admit([entry("c", num_tokens=40)], 0.1)
        scheduler.finish(running, 0.11, device_s=0.11)
        assert run_next(scheduler, 0.11) == ["b", "c"]

    def test_a_runner_of_depth_1_is_handed_one_pass(self):
        scheduler = scheduler_with(*full_documents("ab"), entry("query", lane=QUERY), slots=[Slot()])
        take(scheduler)
        assert scheduler.next_pass(0.0) is None

    def test_a_query_overtakes_what_is_staged_just_before_it_would_begin(self):
        scheduler = scheduler_with(*full_documents("ab"), slots=[STAGING])
        take(scheduler), take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        assert scheduler.next_pass(0.0) is None
        commit_s = scheduler.next_event_s(0.0)
        assert commit_s == pytest.approx(0.110 - 0.002)
        urgent = take(scheduler, commit_s)
        assert (urgent.is_urgent, urgent.may_interrupt, names(urgent.entries)) == (True, False, ["query"])

    def test_the_last_moment_comes_earlier_where_passes_end_earlier_than_predicted(self):
        """One in a hundred may be missed; each of those waits for the staged pass, too."""
        cost = known_cost()
        for _ in range(100):
            cost.observe(Shape(num_tokens=90), 0.8 * cost.predict_s(Shape(num_tokens=90)))
            cost.observe(Shape(num_tokens=90), 1.25 * cost.predict_s(Shape(num_tokens=90)))
        scheduler = Scheduler(limits(), cost=cost, slots=[STAGING])
        scheduler.admit(full_documents("ab"), 0.0)
        running, _ = take(scheduler), take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        assert scheduler.next_event_s(0.0) == pytest.approx(0.79 * running.predicted_s - 0.002, rel=0.02)

    def test_a_full_pass_of_queries_has_nothing_to_wait_for(self):
        scheduler = scheduler_with(*full_documents("ab"), slots=[STAGING])
        take(scheduler), take(scheduler)
        scheduler.admit([entry("query", lane=QUERY, num_tokens=50) for _ in range(2)], 0.0)
        assert take(scheduler).is_urgent

    def test_queries_wait_for_the_slot_where_nothing_is_staged(self):
        """The later a pass is composed, the more queries are in it."""
        scheduler = scheduler_with(*full_documents("a"), slots=[STAGING])
        running = take(scheduler)
        scheduler.admit([entry("first", lane=QUERY)], 0.0)
        assert (scheduler.next_pass(0.109), scheduler.next_event_s(0.0)) == (None, None)
        scheduler.admit([entry("second", lane=QUERY)], 0.11)
        scheduler.finish(running, 0.11, device_s=0.11)
        composed = take(scheduler, 0.11)
        assert (composed.is_urgent, names(composed.entries)) == (False, ["first", "second"])

    def test_nothing_is_staged_before_queries_that_wait(self):
        scheduler = scheduler_with(*full_documents("a"), slots=[STAGING])
        take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        scheduler.admit(full_documents("bc"), 0.0)
        assert scheduler.next_pass(0.0) is None

    def test_a_query_breaks_into_documents_at_once_and_not_into_other_queries(self):
        scheduler = scheduler_with(*full_documents("ab"), slots=[YIELDING])
        take(scheduler), take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        assert take(scheduler).may_interrupt
        scheduler = scheduler_with(entry("running", lane=QUERY), slots=[YIELDING])
        take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        assert scheduler.next_pass(0.0) is None

    def test_one_urgent_pass_waits_and_another_may_run(self):
        scheduler = scheduler_with(*full_documents("ab"), slots=[STAGING])
        running, _ = take(scheduler), take(scheduler)
        scheduler.admit([entry("query", lane=QUERY, num_tokens=50) for _ in range(6)], 0.0)
        assert take(scheduler).is_urgent
        assert scheduler.next_pass(0.0) is None, "one waits"
        scheduler.finish(running, 0.11, device_s=0.11)
        assert take(scheduler, 0.11).is_urgent, "the first one runs now"
        assert scheduler.next_pass(0.11) is None

    def test_idle_slots_ask_before_busy_ones(self):
        scheduler = scheduler_with(*full_documents("abc"), slots=[YIELDING, YIELDING])
        take(scheduler)
        assert scheduler.asking_order() == [1, 0]

    def test_a_query_goes_where_it_can_begin_first(self):
        """To the slot that lets it in, not to the one whose pass has to end."""
        scheduler = scheduler_with(*full_documents("abcd"), slots=[STAGING, YIELDING])
        for slot in (0, 1, 0, 1):
            assert scheduler.next_pass(0.0, slot) is not None
        scheduler.admit([entry("query", lane=QUERY)], 0.109)
        assert scheduler.next_pass(0.109, 0) is None
        urgent = scheduler.next_pass(0.109, 1)
        assert urgent is not None
        assert urgent.slot == 1

    def test_a_query_goes_where_the_pass_that_runs_ends_first(self):
        scheduler = scheduler_with(*full_documents("abcd"), slots=[STAGING, STAGING])
        for slot, now_s in ((0, 0.0), (1, 0.05), (0, 0.05), (1, 0.05)):
            assert scheduler.next_pass(now_s, slot) is not None
        scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 0.06)
        assert scheduler.next_pass(0.06, 1) is None
        assert scheduler.next_pass(0.06, 0) is not None

    def test_a_query_goes_past_a_slot_that_does_not_come_back(self):
        """It may hang until somebody ends it."""
        scheduler = scheduler_with(*full_documents("abcd"), slots=[YIELDING, STAGING])
        for slot, now_s in ((0, 0.0), (1, 0.95), (0, 0.95), (1, 0.95)):
            assert scheduler.next_pass(now_s, slot) is not None
        scheduler.admit([entry("query", lane=QUERY, num_tokens=100)], 1.0)
        assert scheduler.next_pass(1.0, 0) is None
        assert scheduler.next_pass(1.0, 1) is not None

    def test_documents_stay_short_for_a_while_after_a_query(self):
        bounds = limits(max_document_pass_tokens=300, quiet_after_s=1.0)
        scheduler = scheduler_with(entry("query", lane=QUERY), limits=bounds)
        run_next(scheduler)
        scheduler.admit([entry(str(i), num_tokens=100) for i in range(5)], 0.5)
        assert run_next(scheduler, 0.999) == ["0"]
        assert run_next(scheduler, 1.0) == ["1", "2", "3"]

    def test_a_share_is_kept_free_for_documents_in_full_passes_of_queries(self):
        """Short documents ride; no turn of their own has to stop the queries."""
        scheduler = scheduler_with(
            *(entry("document", num_tokens=10) for _ in range(20)),
            limits=limits(fill_tokens=0, document_share=0.2),
        )
        order: list[list[object]] = []
        for _ in range(3):
            scheduler.admit([entry("query", lane=QUERY, num_tokens=10) for _ in range(10)], 0.0)
            order.append(run_next(scheduler))
        assert [passed.count("document") for passed in order] == [0, 2, 2]
        assert [passed.count("query") for passed in order] == [10, 8, 8]

    def test_passes_of_queries_are_filled_further_when_they_have_wasted_much(self):
        """Each of them costs 10 ms that documents could have shared; 20 ms may be lost in a second."""
        bounds = limits(fill_tokens=30, interruption_share=0.02)
        scheduler = scheduler_with(*(entry("document") for _ in range(100)), limits=bounds)
        sizes: list[int] = []
        for now_s in (0.0, 0.0, 0.0, 10.0):
            scheduler.admit([entry("query", lane=QUERY)], now_s)
            sizes.append(len(run_next(scheduler, now_s)))
        assert sizes == [3, 3, 10, 3]

    def test_nobody_breaks_in_at_once_when_all_that_may_be_wasted_is_wasted(self):
        """Then documents have the device for as long as a pass with queries may before the next one."""
        bounds = limits(fill_tokens=0, interruption_share=0.005)
        scheduler = scheduler_with(*full_documents("abcdefgh"), slots=[YIELDING], limits=bounds)
        take(scheduler), take(scheduler)
        scheduler.admit([entry(lane=QUERY, num_tokens=50)], 0.0)
        urgent = take(scheduler)
        assert urgent.breaks_in
        scheduler.finish(urgent, 0.11, device_s=urgent.predicted_s)
        scheduler.admit([entry(lane=QUERY, num_tokens=50, arrival_s=0.11)], 0.11)
        assert scheduler.next_pass(0.2) is None
        assert take(scheduler, 0.22).breaks_in
        assert scheduler.statistics(0.22).wasted_s == pytest.approx(0.020)

    def test_documents_that_follow_each_other_do_not_begin_their_time_anew(self):
        """A query would otherwise wait for it once more whenever a pass of documents ends."""
        bounds = limits(fill_tokens=0, interruption_share=0.005)
        scheduler = scheduler_with(*full_documents("abcdefgh"), slots=[YIELDING], limits=bounds)
        first, _ = take(scheduler), take(scheduler)
        scheduler.admit([entry(lane=QUERY, num_tokens=50)], 0.0)
        urgent = take(scheduler)
        scheduler.finish(urgent, 0.05, device_s=urgent.predicted_s)
        scheduler.finish(first, 0.11, device_s=first.predicted_s)
        take(scheduler, 0.11)
        scheduler.admit([entry(lane=QUERY, num_tokens=30)], 0.12)
        scheduler.admit([entry(lane=QUERY, num_tokens=30)], 0.12)
        assert scheduler.next_pass(0.159) is None
        assert take(scheduler, 0.16).breaks_in

    def test_a_full_pass_breaks_in_however_much_was_wasted(self):
        """Later it would waste as much: nobody else has room in it. Documents have their share to go by."""
        bounds = limits(fill_tokens=0, interruption_share=0.005)
        scheduler = scheduler_with(*full_documents("abcdefgh"), slots=[YIELDING], limits=bounds)
        take(scheduler), take(scheduler)
        for now_s in (0.0, 0.01):
            scheduler.admit([entry(lane=QUERY, num_tokens=100)], now_s)
            urgent = take(scheduler, now_s)
            assert urgent.breaks_in
            scheduler.finish(urgent, now_s, device_s=urgent.predicted_s)

    def test_passes_that_had_to_run_anyway_leave_no_debt(self):
        """A flood of queries would keep them from breaking in long after it."""
        bounds = limits(fill_tokens=0, interruption_share=0.02, document_share=0.0)
        scheduler = scheduler_with(*full_documents("abc"), slots=[YIELDING], limits=bounds)
        for _ in range(100):
            scheduler.admit([entry("query", lane=QUERY)], 0.0)
            assert run_next(scheduler) == ["query"]
        take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 1.0)
        assert take(scheduler, 1.0).may_interrupt

    def test_full_passes_that_break_in_leave_the_debt_of_one(self):
        """Debts that add up would make queries wait for hours after an hour of many."""
        bounds = limits(fill_tokens=0, interruption_share=0.06, document_share=0.0)
        scheduler = scheduler_with(*full_documents("abc"), slots=[YIELDING], limits=bounds)
        take(scheduler), take(scheduler)
        for _ in range(100):
            scheduler.admit([entry(lane=QUERY, num_tokens=100)], 0.0)
            urgent = take(scheduler)
            assert urgent.breaks_in
            scheduler.finish(urgent, 0.0, device_s=urgent.predicted_s)
        # One wasted 10 ms, and 60 ms a second flow in.
        scheduler.admit([entry("query", lane=QUERY, arrival_s=1.2)], 1.2)
        assert names(take(scheduler, 1.2).entries) == ["query"]

    def test_a_pass_that_was_left_is_expected_to_need_only_the_rest(self):
        """Expected to need all of it again, it would end before the next query is handed out, and what is
        staged behind it would begin."""
        scheduler = scheduler_with(*full_documents("ab"), slots=[YIELDING])
        long = take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 0.05)
        urgent = take(scheduler, 0.05)
        assert urgent.breaks_in
        back_s = 0.05 + urgent.predicted_s
        scheduler.finish(urgent, back_s, device_s=urgent.predicted_s)
        left_s = scheduler._slots[0].rest_s(back_s)
        assert left_s == pytest.approx(long.predicted_s - 0.05)


class TestPatience:
    """Where queries may break into documents, and have wasted much of late."""

    def test_a_query_waits_for_nobody_while_nothing_was_wasted(self):
        assert take(self.scheduler(), 0.05).breaks_in

    def test_it_waits_for_company_the_longer_the_more_was_wasted(self):
        """Half of what may be wasted is gone, so it waits for half of what a pass may take, and no longer."""
        scheduler = self.scheduler(num_before=1)
        assert scheduler.next_pass(0.05) is None
        begin_s = scheduler.next_event_s(0.05)
        assert begin_s == pytest.approx(0.05 + 0.110 / 2, abs=0.006)
        scheduler.admit([entry("company", lane=QUERY, arrival_s=0.06)], 0.06)
        assert names(take(scheduler, begin_s).entries) == ["query", "company"]

    def test_it_waits_for_nobody_when_its_pass_is_full(self):
        scheduler = self.scheduler(num_before=1)
        scheduler.admit([entry("company", lane=QUERY, num_tokens=90, arrival_s=0.05)], 0.05)
        assert names(take(scheduler, 0.05).entries) == ["query", "company"]

    def test_it_lets_what_is_staged_begin_and_breaks_into_that(self):
        scheduler = self.scheduler(num_before=1, at_s=0.1)
        assert scheduler.next_pass(0.109) is None
        scheduler.finish(self.first, 0.11, device_s=self.first.predicted_s)
        assert scheduler.next_pass(0.11) is None
        assert take(scheduler, 0.155).breaks_in

    def test_it_does_not_miss_its_deadline_for_company(self):
        scheduler = self.scheduler(num_before=1, deadline_s=0.07 + 0.110)
        assert scheduler.next_event_s(0.05) == pytest.approx(0.07)

    def test_it_waits_for_nobody_where_a_device_is_idle(self):
        scheduler = scheduler_with(
            *full_documents("ab"),
            slots=[YIELDING, YIELDING],
            limits=limits(fill_tokens=0, interruption_share=0.01),
        )
        take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        assert take(scheduler, 0.0).breaks_in
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        assert scheduler.next_pass(0.0, 1) is not None

    def test_it_waits_by_the_bound_that_the_device_can_keep(self):
        """Of 15 ms a pass would cost 10 before it does any work, so it may take 20."""
        bounds = limits(
            max_pass_tokens=5, max_document_pass_tokens=100, fill_tokens=0, interruption_share=0.02
        )
        scheduler = self.scheduler(num_before=1, bounds=bounds, num_tokens=1)
        # 10 of 20 ms were wasted, and 1 has flowed in since.
        assert scheduler.next_event_s(0.05) == pytest.approx(0.05 + 9 / 20 * 0.020)

    def scheduler(
        self,
        *,
        num_before: int = 0,
        at_s: float = 0.05,
        deadline_s: float | None = None,
        bounds: Limits | None = None,
        num_tokens: int = 10,
    ) -> Scheduler:
        """Documents run, and others are staged; a query comes after so many that have wasted 10 ms each."""
        bounds = bounds or limits(fill_tokens=0, interruption_share=0.02)
        scheduler = scheduler_with(*full_documents("abcd"), slots=[YIELDING], limits=bounds)
        self.first, _ = take(scheduler), take(scheduler)
        for _ in range(num_before):
            scheduler.admit([entry(lane=QUERY, num_tokens=num_tokens)], 0.0)
            urgent = take(scheduler)
            scheduler.finish(urgent, 0.0, device_s=urgent.predicted_s)
        query = entry("query", lane=QUERY, num_tokens=num_tokens, arrival_s=at_s, deadline_s=deadline_s)
        scheduler.admit([query], at_s)
        return scheduler


class TestTenants:
    def test_tenants_take_turns_however_much_one_of_them_has_sent(self):
        scheduler = scheduler_with(
            *(entry(f"a{i}", num_tokens=50, tenant="a") for i in range(6)),
            *(entry(f"b{i}", num_tokens=50, tenant="b") for i in range(2)),
        )
        assert [run_next(scheduler) for _ in range(4)] == [
            ["a0", "b0"],
            ["a1", "b1"],
            ["a2", "a3"],
            ["a4", "a5"],
        ]

    def test_turns_are_counted_in_device_time_and_not_in_entries(self):
        scheduler = scheduler_with(
            *(entry("long", num_tokens=60, tenant="a") for _ in range(10)),
            *(entry("short", num_tokens=20, tenant="b") for _ in range(30)),
        )
        ran = [name for _ in range(6) for name in run_next(scheduler)]
        assert 60 * ran.count("long") == pytest.approx(20 * ran.count("short"), abs=60)

    def test_a_query_in_a_hurry_goes_first_among_those_of_its_tenant_only(self):
        """Or a key that asks for short deadlines would have the device for itself."""
        scheduler = scheduler_with(
            entry("a", lane=QUERY, num_tokens=60, tenant="a"),
            entry("b", lane=QUERY, num_tokens=60, tenant="b"),
            entry("b in a hurry", lane=QUERY, num_tokens=60, tenant="b", deadline_s=0.5),
            limits=limits(query_slo_s=1.0),
        )
        assert [run_next(scheduler) for _ in range(3)] == [["a"], ["b in a hurry"], ["b"]]

    def test_a_tenant_with_little_waiting_is_not_told_to_give_up_for_one_with_much(self):
        scheduler = scheduler_with(*(entry(num_tokens=100, tenant="much") for _ in range(50)))
        soon = {"num_tokens": 100, "deadline_s": 0.5}
        with pytest.raises(DeadlineUnmeetableError):
            scheduler.admit([entry(tenant="much", **soon)], 0.0)
        scheduler.admit([entry(tenant="little", **soon)], 0.0)

    def test_a_query_of_a_tenant_with_little_waiting_is_promised_its_turn_and_gets_it(self):
        """Two seconds of another key's are in the lane, and 30 ms are ahead of it."""
        scheduler = scheduler_with(*(entry(lane=QUERY, num_tokens=90, tenant="much") for _ in range(20)))
        soon = {"lane": QUERY, "num_tokens": 20, "deadline_s": 0.5}
        with pytest.raises(DeadlineUnmeetableError):
            scheduler.admit([entry(tenant="much", **soon)], 0.0)
        scheduler.admit([entry("little", tenant="little", **soon)], 0.0)
        assert "little" in [name for _ in range(2) for name in run_next(scheduler)]

    def test_only_queries_of_its_own_tenant_are_weighed_by_their_hurry(self):
        """Those of others get their turns however late they may be answered."""
        scheduler = scheduler_with(
            *(entry(lane=QUERY, num_tokens=90, tenant="a") for _ in range(5)),
            *(entry(lane=QUERY, num_tokens=90, tenant="b") for _ in range(5)),
        )
        hasty = {"lane": QUERY, "num_tokens": 90, "tenant": "b"}
        # Its own 100 ms, and as much for the other tenant's turn.
        with pytest.raises(DeadlineUnmeetableError) as refused:
            scheduler.admit([entry(**hasty, deadline_s=0.09)], 0.0)
        assert refused.value.predicted_s == pytest.approx(0.200)

    def test_a_lane_that_one_tenant_has_filled_takes_the_others_up_to_their_part(self):
        """Who fills it is refused, and nobody else: up to half as much again as the lane holds."""
        scheduler = scheduler_with(
            *(entry(tenant="much") for _ in range(20)), limits=limits(max_waiting_entries=20)
        )
        for _ in range(10):
            with pytest.raises(QueueFullError):
                scheduler.admit([entry(tenant="much")], 0.0)
            scheduler.admit([entry(tenant="little")], 0.0)
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry(tenant="little")], 0.0)
        assert str(refused.value) == (
            "the document lane is full: 30 entries are waiting, 20 are allowed, and the request brings 1"
        )
        with pytest.raises(QueueFullError):
            scheduler.admit([entry(tenant="third")], 0.0)

    def test_a_tenant_with_nothing_waiting_may_wait_with_one_request_however_many_others_do(self):
        """Its part of a lane of ten would be less than one query."""
        scheduler = scheduler_with(
            *(entry(lane=QUERY, num_tokens=90, tenant=str(i)) for i in range(10)),
            limits=limits(max_waiting_s=1.0),
        )
        scheduler.admit([entry(lane=QUERY, num_tokens=90, tenant="new")], 0.0)
        with pytest.raises(QueueFullError):
            scheduler.admit([entry(lane=QUERY, num_tokens=90, tenant="new")], 0.0)

    def test_who_is_refused_for_holding_much_is_told_when_there_is_room_for_it(self):
        """Two passes must go, its own and one of what is beyond the bound. But half of what goes is another's
        that may come again; and by the end of three all that waits is gone."""
        scheduler = scheduler_with(
            *(entry(tenant="much") for _ in range(20)),
            *(entry(tenant="little") for _ in range(10)),
            limits=limits(max_waiting_entries=20),
        )
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry(tenant="much") for _ in range(10)], 0.0)
        assert refused.value.retry_after_s == pytest.approx(3 * 0.110)


class TestAbsentSlots:
    """A runner that restarts is neither idle nor any help."""

    def test_what_is_full_is_staged_on_the_others(self):
        scheduler = scheduler_with(*full_documents("abc"), slots=[STAGING, STAGING])
        scheduler.set_ready(1, 0.0, is_ready=False)
        assert names(take(scheduler).entries) == ["a"]
        assert names(take(scheduler).entries) == ["b"]

    def test_nothing_is_handed_to_it_until_it_is_back(self):
        scheduler = scheduler_with(entry("a"))
        scheduler.set_ready(0, 0.0, is_ready=False)
        assert scheduler.next_pass(0.5) is None
        scheduler.set_ready(0, 1.0, is_ready=True)
        assert run_next(scheduler, 1.0) == ["a"]

    def test_no_moment_to_hand_it_a_query_is_waited_for(self):
        """Passes that were out on it may come back later than it is known to be away."""
        scheduler = scheduler_with(*full_documents("ab"), slots=[STAGING])
        take(scheduler), take(scheduler)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        assert scheduler.next_event_s(0.0) is not None
        scheduler.set_ready(0, 0.0, is_ready=False)
        assert scheduler.next_event_s(0.0) is None

    def test_a_query_does_not_wait_for_it_to_take_it_sooner(self):
        scheduler = scheduler_with(*full_documents("abcd"), slots=[STAGING, YIELDING])
        for slot in (0, 1, 0, 1):
            assert scheduler.next_pass(0.0, slot) is not None
        scheduler.set_ready(1, 0.05, is_ready=False)
        scheduler.admit([entry("query", lane=QUERY)], 0.05)
        assert scheduler.next_pass(0.108, 0) is not None, "the other slot could have begun it sooner"

    def test_a_lane_holds_what_the_ready_slots_need_its_bound_for(self):
        scheduler = scheduler_with(limits=limits(max_waiting_s=0.220), slots=2 * (Slot(),))
        scheduler.admit([entry(num_tokens=100) for _ in range(2)], 0.0)
        assert scheduler.lane_load(DOCUMENT).waiting_s == pytest.approx(0.110)
        num_allowed = scheduler.lane_load(DOCUMENT).max_waiting_tokens
        scheduler.set_ready(1, 0.0, is_ready=False)
        with pytest.raises(QueueFullError):
            scheduler.admit([entry(num_tokens=10)], 0.0)
        assert scheduler.lane_load(DOCUMENT).waiting_s == pytest.approx(0.220)
        assert scheduler.lane_load(DOCUMENT).max_waiting_tokens == num_allowed // 2

    def test_with_no_slot_ready_a_lane_holds_as_much_as_for_the_first_that_comes_back(self):
        """Callers are told to wait for the restart, not to go away."""
        scheduler = scheduler_with(limits=limits(max_waiting_s=0.220), slots=2 * (Slot(),))
        for slot in (0, 1):
            scheduler.set_ready(slot, 0.0, is_ready=False)
        scheduler.admit([entry(num_tokens=100) for _ in range(2)], 0.0)
        with pytest.raises(QueueFullError):
            scheduler.admit([entry(num_tokens=10)], 0.0)

    def test_the_wait_that_is_told_begins_with_the_rest_of_the_restart(self):
        assert self.told_s(restart_s=60.0, away_s=20.0) == pytest.approx(40.0 + 0.110)

    def test_a_restart_that_takes_longer_than_expected_may_go_on_for_a_quarter_of_that(self):
        assert self.told_s(restart_s=60.0, away_s=200.0) == pytest.approx(50.0 + 0.110)

    def test_a_restart_is_expected_to_take_what_the_last_one_took(self):
        scheduler = self.full_scheduler(restart_s=60.0)
        scheduler.set_ready(0, 0.0, is_ready=False)
        scheduler.set_ready(0, 7.0, is_ready=True)
        scheduler.set_ready(0, 100.0, is_ready=False)
        assert self.refused_s(scheduler, 100.0) == pytest.approx(7.0 + 0.110)

    def test_where_nobody_knows_a_restart_is_taken_for_ten_seconds(self):
        assert self.told_s(restart_s=None, away_s=0.0) == pytest.approx(10.0 + 0.110)

    def test_nothing_is_expected_of_a_runner_that_has_ended(self):
        scheduler = self.full_scheduler(restart_s=60.0, slots=2 * (Slot(),))
        scheduler.retire(0, 0.0)
        scheduler.set_ready(1, 0.0, is_ready=False)
        assert self.refused_s(scheduler, 50.0) == pytest.approx(12.5 + 0.110)
        scheduler.retire(1, 0.0)
        assert self.refused_s(scheduler, 50.0) == pytest.approx(60.0 + 0.110)

    def test_a_deadline_within_the_restart_is_told_at_once(self):
        """An idle device would try; this one cannot."""
        for lane in Lane:
            scheduler = Scheduler(limits(), cost=known_cost(), restart_s=60.0)
            scheduler.set_ready(0, 0.0, is_ready=False)
            with pytest.raises(DeadlineUnmeetableError) as refused:
                scheduler.admit([entry(lane=lane, deadline_s=30.0)], 0.0)
            assert refused.value.predicted_s == pytest.approx(60.0 + 0.020)
            scheduler.admit([entry(lane=lane, deadline_s=61.0)], 0.0)

    def full_scheduler(self, *, restart_s: float | None, slots: Sequence[Slot] = (Slot(),)) -> Scheduler:
        """One pass waits, and no more may."""
        bounds = limits(max_waiting_entries=10)
        scheduler = Scheduler(bounds, cost=known_cost(), slots=slots, restart_s=restart_s)
        scheduler.admit([entry() for _ in range(10)], 0.0)
        return scheduler

    def refused_s(self, scheduler: Scheduler, now_s: float) -> float:
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry() for _ in range(10)], now_s)
        return refused.value.retry_after_s

    def told_s(self, *, restart_s: float | None, away_s: float) -> float:
        scheduler = self.full_scheduler(restart_s=restart_s)
        scheduler.set_ready(0, 0.0, is_ready=False)
        return self.refused_s(scheduler, away_s)


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

    @pytest.mark.parametrize(("num_slots", "new_s"), [(1, 0.051), (2, 0.046)])
    def test_device_seconds_are_bounded_as_well_as_entries(self, num_slots: int, new_s: float):
        """Two devices need half as long for the same work, so that twice as much may wait."""
        scheduler = scheduler_with(
            *(entry(num_tokens=60) for _ in range(num_slots)),
            limits=limits(max_waiting_s=0.110),
            slots=num_slots * (Slot(),),
        )
        waiting_s = scheduler.lane_load(DOCUMENT).waiting_s
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry(num_tokens=41) for _ in range(num_slots)], 0.0)
        assert str(refused.value) == (
            f"the document lane is full: {waiting_s} seconds of work are waiting, 0.11 are allowed, "
            f"and the request brings {new_s}"
        )
        scheduler.admit([entry(num_tokens=40) for _ in range(num_slots)], 0.0)

    def test_a_request_larger_than_the_lane_is_let_into_an_empty_one(self):
        """Or it would be told to come back for ever."""
        large = [entry(num_tokens=90) for _ in range(10)]
        scheduler = scheduler_with(limits=limits(max_waiting_s=0.2))
        scheduler.admit(large, 0.0)
        with pytest.raises(QueueFullError):
            scheduler.admit([entry()], 0.0)

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
            *(entry() for _ in range(100)),
            limits=limits(max_waiting_entries=100),
            slots=num_slots * (Slot(),),
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
        """A thousand queries ahead take 11 s; half of the device needs 220 ms to save up for the turn that
        makes room, and as long again if it has just had one."""
        bounds = replace(
            limits(fill_tokens=0, document_share=0.5, batch_share=0),
            max_waiting_entries={QUERY: 1000, DOCUMENT: 10, BATCH: 1},
        )
        scheduler = scheduler_with(limits=bounds)
        scheduler.admit([entry() for _ in range(10)], 0.0)
        scheduler.admit([entry(lane=QUERY) for _ in range(1000)], 0.0)
        with pytest.raises(QueueFullError) as refused:
            scheduler.admit([entry() for _ in range(10)], 0.0)
        assert refused.value.retry_after_s == pytest.approx(2 * 0.110 / 0.5)

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

    def test_what_cannot_be_done_in_time_is_not_let_in(self):
        """300 ms of documents are ahead, and 110 ms are its own."""
        scheduler = scheduler_with(*(entry(num_tokens=90) for _ in range(3)))
        scheduler.admit([entry(num_tokens=100, deadline_s=0.42)], 0.0)
        with pytest.raises(DeadlineUnmeetableError) as refused:
            scheduler.admit([entry(num_tokens=90, deadline_s=0.42)], 0.0)
        assert str(refused.value) == "the deadline is in 420 ms, and the result is expected in 510 ms"
        assert scheduler.statistics(0.0).lanes[DOCUMENT].num_refused == 1

    def test_only_more_urgent_queries_count_against_a_deadline(self):
        scheduler = scheduler_with(*(entry(lane=QUERY, num_tokens=90) for _ in range(5)))
        scheduler.admit([entry("hasty", lane=QUERY, num_tokens=20, deadline_s=0.05)], 0.0)
        assert run_next(scheduler) == ["hasty"]

    def test_a_deadline_later_than_the_usual_does_not_put_a_query_back(self):
        """The OpenAI SDK sends ten minutes with every call."""
        scheduler = scheduler_with(
            entry("patient", lane=QUERY, num_tokens=60, deadline_s=600.0),
            entry("plain", lane=QUERY, num_tokens=60),
        )
        assert run_next(scheduler) == ["patient"]

    def test_an_idle_device_tries_what_it_thinks_it_cannot_do(self):
        """A prediction that became too long by accident would refuse everything that could correct it."""
        scheduler = scheduler_with(entry("tried", num_tokens=100, deadline_s=0.01))
        assert run_next(scheduler) == ["tried"]

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
        scheduler.finish(composed, 0.0, device_s=2.0)
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
        assert scheduler.retry(lost, 0.0, is_runner_lost=True) == ()
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
                    given_up += names(scheduler.retry(composed, 0.0, is_runner_lost=False))
                else:
                    scheduler.finish(composed, 0.0, device_s=0.1)
            assert given_up == [str(culprit)]
            assert num_passes <= 1 + 2 * math.ceil(math.log2(num_entries))
            assert scheduler.statistics(0.0).lanes[DOCUMENT].num_done == num_entries - 1

    def test_what_was_staged_when_a_runner_died_is_not_blamed_in_whatever_order_passes_come_back(self):
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
            scheduler = scheduler_with(*full_documents("ab"), slots=[STAGING])
            out = [take(scheduler), take(scheduler)]
            scheduler.admit([entry("query", lane=QUERY)], 0.109)
            out.append(take(scheduler, 0.109))
            for index in order:
                lost = out[index]
                assert scheduler.retry(lost, 0.11, is_runner_lost=True, has_begun=lost is out[0]) == ()
            attempts = {each.payload: each.num_attempts for lost in out for each in lost.entries}
            assert attempts == {"a": 1, "b": 0, "query": 0}

    def test_an_entry_alone_that_never_began_keeps_its_retry_however_many_runners_die(self):
        """A runner may die between the moment when a pass is handed to it and the one when it takes it."""
        scheduler = scheduler_with(only := entry("only"))
        for _ in range(5):
            assert scheduler.retry(take(scheduler), 0.0, is_runner_lost=True, has_begun=False) == ()
        assert scheduler.retry(take(scheduler), 0.0, is_runner_lost=True) == ()
        assert scheduler.retry(take(scheduler), 0.0, is_runner_lost=True) == (only,)

    def test_an_entry_alone_that_raises_is_given_up(self):
        culprit = entry()
        scheduler = scheduler_with(culprit)
        assert scheduler.retry(take(scheduler), 0.0, is_runner_lost=False) == (culprit,)
        assert scheduler.statistics(0.0).lanes[DOCUMENT].num_failed == 1

    def test_a_mixed_pass_falls_into_its_lanes_so_that_queries_are_free_of_documents_first(self):
        scheduler = scheduler_with(entry("query", lane=QUERY), entry("a"), entry("b"))
        ran, given_up = drain_with_culprit(scheduler, "b", is_runner_lost=False)
        assert ran == ["query" + "ab", "query", "ab", "a", "b"]
        assert given_up == ["b"]

    def test_new_entries_never_join_what_is_left_of_a_failed_pass(self):
        scheduler = scheduler_with(entry("a"), entry("b"))
        failed = take(scheduler)
        scheduler.retry(failed, 0.0, is_runner_lost=False)
        scheduler.admit([entry("query", lane=QUERY)], 0.0)
        scheduler.admit([entry("new")], 0.0)
        assert [run_next(scheduler) for _ in range(4)] == [["query"], ["a"], ["b"], ["new"]]

    def test_newer_documents_do_not_ride_with_queries_past_a_document_that_is_tried_again(self):
        """Riding would use up the share that the retry needs for its turn."""
        scheduler = scheduler_with(entry("again", num_tokens=5))
        scheduler.retry(take(scheduler), 0.0, is_runner_lost=True)
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
        scheduler.retry(failed, 0.0, is_runner_lost=False)
        assert run_next(scheduler) == ["b"]
        assert scheduler.next_pass(0.0) is None

    def test_a_survivor_of_a_failed_pass_is_not_blamed_before_it_stood_alone(self):
        """The culprit may have been the one that was cancelled under way."""
        culprit, survivor = entry("culprit"), entry("survivor")
        scheduler = scheduler_with(culprit, survivor)
        failed = take(scheduler)
        scheduler.cancel(culprit)
        assert scheduler.retry(failed, 0.0, is_runner_lost=False) == ()
        assert run_next(scheduler) == ["survivor"]


class TestState:
    def test_statistics_account_for_every_entry(self):
        a, b, c, e = (entry(name, num_tokens=40) for name in "abce")
        d = entry("d", num_tokens=40, deadline_s=5.0)
        scheduler = scheduler_with(a, b, c, d, e)
        first = take(scheduler, 1.0)
        scheduler.finish(first, 0.0, device_s=0.5, failed=[b])
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
        # 100 s of full passes, each of which holds 100 tokens in 110 ms.
        assert scheduler.lane_load(QUERY) == LaneLoad(
            num_waiting=1,
            num_waiting_tokens=60,
            waiting_s=pytest.approx(0.070),
            max_waiting_tokens=pytest.approx(90_909, abs=1),
        )
        assert scheduler.lane_load(BATCH).waiting_s == 0

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
        scheduler.finish(take(scheduler), 0.0, device_s=0.4)
        lanes = scheduler.statistics(0.0).lanes
        assert (lanes[QUERY].device_s, lanes[DOCUMENT].device_s) == pytest.approx((0.1, 0.3))

    def test_cancelling_what_has_gone_changes_nothing(self):
        done = entry()
        scheduler = scheduler_with(done)
        scheduler.finish(take(scheduler), 0.0, device_s=0.1)
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
        scheduler.finish(composed, 0.0, device_s=0.3)
        scheduler.admit([entry(num_tokens=100)], 0.0)
        assert take(scheduler).predicted_s == pytest.approx(0.3)


def num_calls(function: Callable[[], object]) -> int:
    """How many functions run, and how often generators are resumed, until this one returns."""
    events: list[str] = []
    before = sys.getprofile()
    # A collection in the middle would be counted, and what hypothesis has it call.
    gc.disable()
    sys.setprofile(lambda _frame, event, _arg: events.append(event))
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
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
            given_up += names(scheduler.retry(composed, 0.0, is_runner_lost=is_runner_lost))
        else:
            scheduler.finish(composed, 0.0, device_s=composed.predicted_s)
    return ran, given_up

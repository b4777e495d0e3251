"""What is promised to those who were refused, and what it takes from the others."""

import pytest

from batching import promises
from batching.promises import Promise, PromiseBook


def promise(*, due_s: float, work_s: float = 0.5, num_entries: int = 1) -> Promise:
    return Promise(tenant="a", num_entries=num_entries, work_s=work_s, due_s=due_s)


def test_a_promise_holds_until_it_is_redeemed():
    book = PromiseBook()
    book.keep("ticket", promise(due_s=1.0))
    assert book.is_due("ticket", 1.0)
    assert not book.is_due("another", 1.0)
    book.redeem("ticket", 1.0)
    assert not book.is_due("ticket", 1.0)
    assert book.total(1.0) == (0, 0.0)


def test_it_lapses_a_moment_after_its_time():
    """Whoever has not come then is not counted with, or those who never come would keep others out. But a
    wait in whole seconds is up to one too long."""
    book = PromiseBook()
    book.keep("ticket", promise(due_s=1.0))
    assert book.is_due("ticket", 2.49)
    assert not book.is_due("ticket", 2.5)
    assert book.total(2.5) == (0, 0.0)


def test_a_little_too_early_is_on_time():
    assert promise(due_s=1.0).is_due(0.96)
    assert not promise(due_s=1.0).is_due(0.9)


def test_who_comes_before_its_time_leaves_a_promise_to_him_who_was_told():
    book = PromiseBook()
    book.keep("ticket", promise(due_s=1.0))
    book.redeem("ticket", 0.5)
    assert book.is_due("ticket", 1.0)


def test_the_promise_that_is_due_first_is_the_one_that_counts():
    """Waits get shorter when a runner is back, so a later promise may be for an earlier time."""
    book = PromiseBook()
    book.keep("ticket", promise(due_s=10.0))
    book.keep("ticket", promise(due_s=1.0))
    assert book.is_due("ticket", 1.0)
    book.redeem("ticket", 1.0)
    assert not book.is_due("ticket", 1.0)
    assert book.is_due("ticket", 10.0)


def test_equal_requests_have_a_promise_each():
    """A popular query comes from many, and each was told a time."""
    book = PromiseBook()
    first, second = promise(due_s=1.0, work_s=0.5), promise(due_s=2.0, work_s=0.25, num_entries=3)
    assert book.keep("ticket", first) is first
    assert book.keep("ticket", second) is second
    assert book.total(0.0) == book.total_of("a", 0.0) == (4, 0.75)
    assert book.total_of("b", 0.0) == (0, 0.0)
    book.redeem("ticket", 1.0)
    assert book.total(1.0) == (3, 0.25)
    assert not book.is_due("ticket", 1.5)
    assert book.is_due("ticket", 2.0)


def test_who_asks_for_the_same_again_and_again_is_told_his_last_time():
    book = PromiseBook()
    kept = [book.keep("ticket", promise(due_s=float(due_s))) for due_s in range(100)]
    assert len({id(one) for one in kept}) == 16
    assert kept[-1] is kept[15]
    assert book.total(0.0) == (16, 8.0)


def test_who_comes_for_his_promise_is_not_counted_with_it():
    book = PromiseBook()
    book.keep("ticket", promise(due_s=1.0, work_s=0.5))
    book.keep("later", promise(due_s=9.0, work_s=0.25))
    assert book.total_of("a", 1.0) == (2, 0.75)
    assert book.total_of("a", 1.0, but_for="ticket") == (1, 0.25)
    assert book.total_of("a", 1.0, but_for="later") == (2, 0.75)


def test_a_lane_keeps_so_many_promises_and_no_more(monkeypatch: pytest.MonkeyPatch):
    """Their number is that of refusals in a minute, which a client may raise as it likes."""
    monkeypatch.setattr(promises, "_MOST_PROMISES", 3)
    book = PromiseBook()
    for ticket in range(5):
        book.keep(ticket, promise(due_s=1.0))
    assert book.total(1.0) == (3, 1.5)
    assert [book.is_due(ticket, 1.0) for ticket in range(5)] == [True] * 3 + [False] * 2


def test_what_is_there_again_by_then_is_not_kept_free():
    """Two seconds away, and half of each second is the lane's: one second of work will have gone."""
    book = PromiseBook()
    book.keep("ticket", promise(due_s=2.0, work_s=1.5))
    assert book.most_in_the_way(0.0, work_s=2.0, speed=0.5) == pytest.approx(0.5)
    assert book.most_in_the_way(2.0, work_s=2.0, speed=0.5) == pytest.approx(1.5)
    assert book.most_in_the_way(0.0, work_s=2.0, speed=1.0) == 0


def test_a_promise_for_later_than_all_that_is_there_will_have_gone_is_in_nobodys_way():
    book = PromiseBook()
    book.keep("ticket", promise(due_s=2.0, work_s=9.0))
    assert book.most_in_the_way(0.0, work_s=0.9, speed=0.5) == 0
    assert book.most_in_the_way(0.0, work_s=1.1, speed=0.5) == pytest.approx(8.0)


def test_the_moment_that_needs_most_counts():
    book = PromiseBook()
    for number, (due_s, work_s) in enumerate([(1.0, 1.2), (1.0, 0.3), (9.0, 2.0)]):
        book.keep(number, promise(due_s=due_s, work_s=work_s))
    assert book.most_in_the_way(0.0, work_s=5.0, speed=1.0) == pytest.approx(0.5)

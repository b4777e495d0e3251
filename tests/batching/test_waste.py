"""What passes of queries may waste, and how patient that makes them."""

import pytest

from batching.waste import WasteBudget


@pytest.fixture
def budget() -> WasteBudget:
    """A tenth of two devices' time: 0.2 s a second, and as much at once."""
    return WasteBudget(share=0.1, num_slots=2)


def test_it_begins_full_and_patience_at_nothing(budget: WasteBudget):
    assert budget.left_s(5.0) == pytest.approx(0.2)
    assert budget.spent_part(5.0) == 0


def test_what_is_spent_flows_in_again_up_to_the_burst(budget: WasteBudget):
    budget.spend(0.15, 0.0, may_owe=False)
    assert budget.left_s(0.0) == pytest.approx(0.05)
    assert budget.spent_part(0.0) == pytest.approx(0.75)
    assert budget.left_s(0.5) == pytest.approx(0.15)
    assert budget.left_s(9.0) == pytest.approx(0.2)


def test_who_may_not_owe_leaves_nothing_rather_than_less(budget: WasteBudget):
    budget.spend(0.5, 0.0, may_owe=False)
    assert budget.left_s(0.0) == 0
    assert budget.spent_part(0.0) == 1


def test_debts_do_not_add_up_and_small_ones_pay_no_larger_one_back(budget: WasteBudget):
    for _ in range(100):
        budget.spend(0.3, 0.0, may_owe=True)
    assert budget.left_s(0.0) == pytest.approx(-0.3)
    budget.spend(0.1, 0.0, may_owe=True)
    budget.spend(0.1, 0.0, may_owe=False)
    assert budget.left_s(0.0) == pytest.approx(-0.3)
    assert budget.spent_part(0.0) == 1


def test_nothing_flows_in_while_the_clock_stands_still_or_goes_back(budget: WasteBudget):
    budget.spend(0.2, 1.0, may_owe=False)
    assert budget.left_s(1.0) == budget.left_s(0.0) == 0


def test_a_device_that_is_away_may_waste_nothing(budget: WasteBudget):
    """What it could have wasted is not there for the other one, and comes back with it."""
    budget.set_num_slots(1, 0.0)
    assert budget.left_s(0.0) == pytest.approx(0.1)
    budget.spend(0.1, 0.0, may_owe=False)
    assert budget.left_s(0.5) == pytest.approx(0.05)
    budget.set_num_slots(0, 0.5)
    assert (budget.left_s(9.0), budget.spent_part(9.0)) == (0, 0)
    budget.set_num_slots(2, 9.0)
    assert budget.left_s(9.5) == pytest.approx(0.1)


def test_without_a_share_there_is_nothing_and_nobody_waits_for_it():
    budget = WasteBudget(share=0.0, num_slots=2)
    budget.spend(0.1, 0.0, may_owe=False)
    assert budget.left_s(9.0) == 0
    assert budget.spent_part(9.0) == 0

"""A lane's counts follow its entries at once, and its deque holds no more dead than living ones."""

import math
import random

from batching import Entry, Shape
from batching.lanes import LaneQueue
from tests.batching.fakes import entry, names


def price_s(shape: Shape) -> float:
    return float(shape.num_tokens)


def deadline_s(waiting: Entry) -> float:
    return math.inf if waiting.deadline_s is None else waiting.deadline_s


def queue_of(*entries: Entry, is_by_deadline: bool = False) -> LaneQueue:
    queue = LaneQueue(price_s=price_s, urgency=deadline_s if is_by_deadline else None)
    for each in entries:
        queue.append(each)
    return queue


def test_an_entry_that_is_given_up_leaves_the_counts_at_once():
    """Its place in the lane belongs to the next request from this moment on."""
    stays, leaves = entry("stays", num_tokens=3), entry("leaves", num_tokens=4)
    queue = queue_of(leaves, stays)
    assert queue.discard(leaves)
    assert (len(queue), queue.num_tokens, names(list(queue))) == (1, 3, ["stays"])
    assert not queue.discard(leaves)


def test_entries_that_are_passed_by_keep_their_places():
    a, b, c, d = (entry(name) for name in "abcd")
    queue = queue_of(a, b, c, d)
    queue.take([b, d])
    assert names(list(queue)) == ["a", "c"]


def test_a_lane_by_deadline_serves_the_most_urgent_first_and_equals_by_arrival():
    queue = queue_of(
        entry("whenever"),
        entry("late", deadline_s=9),
        entry("soon", deadline_s=1),
        entry("soon too", deadline_s=1),
        is_by_deadline=True,
    )
    assert names(list(queue)) == ["soon", "soon too", "late", "whenever"]


def test_a_group_stands_apart_from_the_line_but_counts_as_waiting():
    queue = queue_of(entry("in line", num_tokens=1))
    queue.push_group([entry("a", num_tokens=2), entry("b", num_tokens=3)])
    assert (len(queue), queue.num_tokens) == (3, 6)
    assert names(queue.group) == ["a", "b"]
    assert names(list(queue)) == ["in line"]
    assert names(queue.take_group()) == ["a", "b"]
    assert (len(queue), queue.num_tokens, queue.group) == (1, 1, ())


def test_a_group_that_everybody_left_is_no_group():
    alone, other = entry("alone"), entry("other")
    queue = queue_of()
    queue.push_group([other])
    queue.push_group([alone])
    queue.discard(alone)
    assert names(queue.take_group()) == ["other"]
    assert queue.take_group() == ()


def test_the_oldest_arrival_is_found_in_groups_and_behind_more_urgent_entries():
    queue = queue_of(
        entry(arrival_s=5, deadline_s=6), entry(arrival_s=4, deadline_s=100), is_by_deadline=True
    )
    assert queue.oldest_arrival_s() == 4
    queue.push_group([entry(arrival_s=3), entry(arrival_s=2)])
    assert queue.oldest_arrival_s() == 2
    assert queue_of(entry(arrival_s=1), entry(arrival_s=2)).oldest_arrival_s() == 1
    assert queue_of().oldest_arrival_s() is None


def test_it_is_counted_how_often_the_first_in_line_was_overtaken():
    a, b, c = (entry(name) for name in "abc")
    queue = queue_of(a, b, c)
    queue.take([b])
    queue.take([c])
    assert queue.num_overtakings == 2
    queue.take([a])
    assert queue.num_overtakings == 0


def test_callers_who_come_and_go_do_not_pile_up_behind_one_who_stays():
    """A client in a loop of requests that it drops must not fill the memory of the server."""
    queue = queue_of(entry("stays"))
    for _ in range(10_000):
        passer_by = entry()
        queue.append(passer_by)
        queue.discard(passer_by)
    assert len(queue) == 1
    assert len(queue._lines[""].entries) < 100


def test_the_tenant_that_was_served_least_is_next():
    queue = queue_of(*(entry(f"a{i}", tenant="a") for i in range(4)), entry("b0", tenant="b", num_tokens=20))
    assert names(list(queue)) == ["a0", "b0", "a1", "a2", "a3"]
    queue.take(list(queue)[:2])
    queue.append(entry("b1", tenant="b"))
    assert names(list(queue)) == ["a1", "a2", "b1", "a3"], "b has had 20 tokens, a 10"


def test_whoever_comes_late_is_not_owed_what_the_others_had_before():
    queue = queue_of(*(entry("early", tenant="a") for _ in range(100)))
    for _ in range(50):
        queue.take(list(queue)[:1])
    for _ in range(3):
        queue.append(entry("late", tenant="b"))
    assert names(list(queue)[:6]) == ["late", "early", "late", "early", "late", "early"]


def test_whoever_leaves_and_comes_back_is_not_served_anew():
    """Or one request after the other would be faster than all at once."""
    queue = queue_of(
        entry("large", tenant="a", num_tokens=50), *(entry("small", tenant="b") for _ in range(20))
    )
    queue.take(list(queue)[:1])
    queue.append(entry("again", tenant="a", num_tokens=50))
    assert names(list(queue)).index("again") == 6, (
        "after 50 tokens of the other, and one more by coming later"
    )


def test_tenants_that_have_gone_are_forgotten_in_the_end():
    queue = queue_of(*(entry("stays", tenant="stays", num_tokens=1) for _ in range(10)))
    for i in range(2_000):
        queue.append(entry(tenant=f"passer-by {i}", num_tokens=1_000))
        queue.take([each for each in queue if each.tenant.startswith("passer-by")])
    assert len(queue._lines) == 1
    assert len(queue._gone_s) < 100


def test_the_first_of_each_tenant_is_guarded_against_being_overtaken():
    """Each has its own: that others are served does not help whoever is passed by in the same line."""
    long, short, other = entry("long", tenant="a"), entry("short", tenant="a"), entry("other", tenant="b")
    queue = queue_of(long, short, other)
    queue.take([short, other])
    assert queue.num_overtakings == 1
    queue.append(entry("other", tenant="b"))
    queue.take([each for each in queue if each.tenant == "b"])
    assert queue.num_overtakings == 2, "it was next, and another was taken"
    queue.take([long])
    assert queue.num_overtakings == 0


def test_counts_never_drift_from_what_is_there():
    rng = random.Random(0)
    for is_by_deadline in (False, True):
        queue, living = queue_of(is_by_deadline=is_by_deadline), set[Entry]()
        for _ in range(3_000):
            version, order = queue.version, (list(queue), queue.group)
            match rng.randrange(5):
                case 0 | 1:
                    new = entry(num_tokens=rng.randint(1, 9), deadline_s=rng.random())
                    queue.append(new)
                    living.add(new)
                case 2 if living:
                    gone = rng.choice(sorted(living, key=id))
                    assert queue.discard(gone)
                    living.remove(gone)
                case 3:
                    line = list(queue)
                    taken = rng.sample(line, k=min(len(line), rng.randint(0, 4)))
                    queue.take(taken)
                    living.difference_update(taken)
                    if len(taken) > 1:
                        queue.push_group(taken)
                        living.update(taken)
                case _:
                    living.difference_update(queue.take_group())
            assert len(queue) == len(living)
            assert queue.num_tokens == sum(each.num_tokens for each in living)
            assert queue.version != version or (list(queue), queue.group) == order
        assert set(queue) <= living

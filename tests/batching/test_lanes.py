"""A lane's counts follow its entries at once, and its deque holds no more dead than living ones."""

import random

from batching import Entry
from batching.lanes import LaneQueue
from tests.batching.fakes import entry, names


def queue_of(*entries: Entry, is_by_deadline: bool = False) -> LaneQueue:
    queue = LaneQueue(is_by_deadline=is_by_deadline)
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
    assert len(queue._line) < 100


def test_counts_never_drift_from_what_is_there():
    rng = random.Random(0)
    for is_by_deadline in (False, True):
        queue, living = LaneQueue(is_by_deadline=is_by_deadline), set[Entry]()
        for _ in range(3_000):
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
        assert set(queue) <= living

"""What is known of passes that are out: which can have begun, and when an answer is overdue."""

import asyncio

import pytest

from model.worker.outstanding import Job, Outstanding


@pytest.fixture
async def jobs():
    """Makes jobs by name: urgent ones start with a q."""

    def make(name: str, timeout_s: float = 10.0) -> Job:
        return Job(
            pid=7,
            pass_id=sum(name.encode()),
            num_inputs=1,
            num_tokens=1,
            timeout_s=timeout_s,
            is_urgent=name.startswith("q"),
            answer=asyncio.get_running_loop().create_future(),
        )

    return make


@pytest.mark.parametrize(
    ("sent", "begun"),
    [
        (["d1"], ["d1"]),
        (["d1", "d2"], ["d1"]),
        (["d1", "d2", "q1", "q2"], ["d1", "q1"]),
        (["d1", "q1", "d2"], ["d1", "q1"]),
        # Whoever sees the second has seen the first.
        (["q1", "d1"], ["q1"]),
        (["q1", "d1", "q2"], ["q1"]),
    ],
)
async def test_only_the_first_of_each_kind_can_have_begun(jobs, sent, begun):
    made = {name: jobs(name) for name in sent}
    outstanding = Outstanding()
    for job in made.values():
        outstanding.add(job, now_s=0.0)
    assert outstanding.possibly_begun() == [made[name] for name in begun]


async def test_a_job_behind_another_has_all_its_time_when_its_turn_comes(jobs):
    """A document that ran long must not cost the one behind it its process."""
    outstanding = Outstanding()
    first, second = jobs("d1", 60.0), jobs("d2", 1.0)
    outstanding.add(first, now_s=100.0)
    outstanding.add(second, now_s=101.0)
    assert outstanding.deadline_s() == 160.0
    outstanding.remove(first, now_s=155.0)
    assert outstanding.deadline_s() == 156.0


async def test_an_interruption_does_not_count_against_the_one_it_interrupts(jobs):
    outstanding = Outstanding()
    document, query = jobs("d1", 10.0), jobs("q1", 2.0)
    outstanding.add(document, now_s=0.0)
    outstanding.add(query, now_s=9.0)
    # The query may have begun at the last moment of the document, and have all its own time then.
    assert outstanding.deadline_s() == 12.0
    outstanding.remove(query, now_s=11.0)
    assert outstanding.deadline_s() == 21.0


async def test_queries_that_keep_coming_do_not_put_a_hanging_document_off(jobs):
    """Only answers do, and a process that hangs gives none."""
    outstanding = Outstanding()
    outstanding.add(jobs("d1", 10.0), now_s=0.0)
    for number in range(1, 9):
        outstanding.add(jobs(f"q{number}", 2.0), now_s=float(number))
        assert outstanding.deadline_s() == 12.0


async def test_a_process_that_owes_nothing_is_never_overdue(jobs):
    outstanding = Outstanding()
    assert outstanding.deadline_s() is None
    job = jobs("d1")
    outstanding.add(job, now_s=0.0)
    outstanding.remove(job, now_s=1.0)
    assert outstanding.deadline_s() is None
    assert len(outstanding) == 0
    outstanding.add(job, now_s=50.0)
    assert outstanding.deadline_s() == 60.0

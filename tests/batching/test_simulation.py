"""The guarantees, on any arrivals that hypothesis can think of: random ones, and floods of one kind."""

from collections import Counter
from math import ceil, log2

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batching import Lane, Shape
from tests.batching.fakes import known_cost, limits
from tests.batching.simulation import Arrival, Simulation

MAX_PASS_TOKENS = 100
PASS_S = known_cost().predict_s(Shape(num_tokens=MAX_PASS_TOKENS))

sizes = st.lists(st.integers(1, 130), min_size=1, max_size=6).map(tuple)
moments_s = st.one_of(st.floats(0, 3), st.sampled_from([0.0, 0.5, 1.0]))
few_indexes = st.one_of(st.just(frozenset[int]()), st.frozensets(st.integers(0, 5), max_size=2))
arrivals = st.builds(
    Arrival,
    at_s=moments_s,
    lane=st.sampled_from(Lane),
    sizes=sizes,
    timeout_s=st.none() | st.floats(0.001, 1.5),
    cancelled_after_s=st.none() | st.floats(0, 1),
    raising=few_indexes,
    killing=few_indexes,
)
bounds = st.builds(
    limits,
    fill_tokens=st.integers(0, MAX_PASS_TOKENS),
    max_pass_entries=st.sampled_from([1, 2, 5, 100]),
    max_wait_s=st.sampled_from([0.0, 0.0, 0.2]),
    document_share=st.sampled_from([0.0, 0.15, 0.5]),
    batch_share=st.sampled_from([0.0, 0.05, 0.3]),
    max_waiting_entries=st.integers(4, 60),
    max_waiting_tokens=st.integers(120, 3_000),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bounds=bounds,
    num_slots=st.integers(1, 3),
    arrivals=st.lists(arrivals, max_size=40),
    dying_passes=st.frozensets(st.integers(0, 30), max_size=5),
)
def test_every_law_holds_at_every_step_whatever_comes(bounds, num_slots, arrivals, dying_passes):
    """The simulation checks itself; here only that nothing was lost, and that nobody innocent failed."""
    simulation = Simulation(bounds, num_slots=num_slots, dying_passes=dying_passes)
    simulation.play(arrivals)
    num_refused = sum(len(arrival.sizes) for arrival in simulation.refused)
    assert len(simulation.ends) == sum(len(arrival.sizes) for arrival in arrivals) - num_refused
    for entry, end in simulation.ends.items():
        if end == "failed" and entry not in simulation.culprits:
            assert entry.num_attempts >= 2, "an innocent entry failed before two runners died under it"
        if end == "done":
            assert entry not in simulation.culprits


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60).map(tuple),
    culprits=st.frozensets(st.integers(0, 59), min_size=1, max_size=3),
    kills=st.booleans(),
    lane=st.sampled_from(Lane),
)
def test_only_culprits_fail_and_finding_them_takes_a_bounded_number_of_passes(sizes, culprits, kills, lane):
    """Each culprit costs its pass, once more if a runner died, and two passes for each halving."""
    fate = {"killing": culprits} if kills else {"raising": culprits}
    simulation = Simulation(limits(max_pass_entries=1_000))
    simulation.play([Arrival(at_s=0.0, lane=lane, sizes=sizes, **fate)])
    failed = {entry for entry, end in simulation.ends.items() if end == "failed"}
    assert failed == set(simulation.culprits)
    assert set(Counter(simulation.ends.values())) <= {"done", "failed"}
    halvings = ceil(log2(max(2, len(sizes))))
    num_needed = ceil(2 * sum(sizes) / MAX_PASS_TOKENS) + 1
    assert len(simulation.runs) <= num_needed + len(failed) * (2 + 2 * halvings)


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.integers(1, MAX_PASS_TOKENS), min_size=150, max_size=250).map(tuple),
    gaps_s=st.lists(st.floats(2 * PASS_S, 4 * PASS_S), min_size=10, max_size=30),
    sizes=st.lists(st.integers(1, MAX_PASS_TOKENS), min_size=30, max_size=30),
    fill_tokens=st.integers(0, MAX_PASS_TOKENS),
)
def test_a_query_waits_for_the_pass_that_runs_and_for_its_own(documents, gaps_s, sizes, fill_tokens):
    """Whatever the backlog of documents. Queries stay under capacity here: one at a time."""
    simulation = Simulation(limits(fill_tokens=fill_tokens))
    queries, at_s = [], 0.01
    for gap_s, size in zip(gaps_s, sizes, strict=False):
        queries.append(Arrival(at_s=at_s, lane=Lane.QUERY, sizes=(size,)))
        at_s += gap_s
    simulation.play([Arrival(at_s=0.0, lane=Lane.DOCUMENT, sizes=documents), *queries])
    for query, ended_s in simulation.ended_s.items():
        if query.lane is not Lane.QUERY:
            continue
        running_s = max(
            (
                run.end_s - query.arrival_s
                for run in simulation.runs
                if run.composed.composed_s < query.arrival_s < run.end_s
            ),
            default=0.0,
        )
        own_s = simulation.cost.predict_s(Shape(num_tokens=max(query.num_tokens, fill_tokens)))
        assert ended_s - query.arrival_s <= running_s + own_s + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    query_sizes=st.lists(st.integers(5, MAX_PASS_TOKENS), min_size=1, max_size=10),
    document_sizes=st.lists(st.integers(5, MAX_PASS_TOKENS), min_size=1, max_size=10),
    fill_tokens=st.integers(0, MAX_PASS_TOKENS),
    document_share=st.sampled_from([0.05, 0.15, 0.4]),
    batch_share=st.sampled_from([0.05, 0.2]),
    num_slots=st.integers(1, 3),
)
def test_waiting_documents_and_batch_work_keep_their_shares_under_twice_the_queries_that_fit(
    query_sizes, document_sizes, fill_tokens, document_share, batch_share, num_slots
):
    """At every moment of the flood each lane has had its share, but for the pass it is saving up for."""
    bounds = limits(
        fill_tokens=fill_tokens,
        document_share=document_share,
        batch_share=batch_share,
        max_waiting_entries=100_000,
        max_waiting_tokens=10_000_000,
    )
    simulation = Simulation(bounds, num_slots=num_slots, checks_all=False)
    flood_s, at_s, queries = 60 * PASS_S, 0.0, []
    while at_s < flood_s:
        size = query_sizes[len(queries) % len(query_sizes)]
        queries.append(Arrival(at_s=at_s, lane=Lane.QUERY, sizes=(size,)))
        # Full passes are the fastest way to serve queries, and these come at twice that pace.
        at_s += PASS_S * size / MAX_PASS_TOKENS / (2 * num_slots)
    # So much that it lasts whatever part of the device it gets.
    backlog = tuple(document_sizes[i % len(document_sizes)] for i in range(num_slots * 70 * 16))
    simulation.play(
        [
            Arrival(at_s=0.0, lane=Lane.DOCUMENT, sizes=backlog),
            Arrival(at_s=0.0, lane=Lane.BATCH, sizes=backlog),
            *queries,
        ],
        until_s=flood_s,
    )
    served_s, received_s = 0.0, Counter[Lane]()
    for run in simulation.runs:
        served_s += run.composed.predicted_s
        for lane, num_tokens in run.composed.num_tokens_by_lane().items():
            received_s[lane] += run.composed.predicted_s * num_tokens / run.composed.num_tokens
        # A turn is saved up for, and may have to let the other lane's turn go first.
        assert received_s[Lane.DOCUMENT] >= document_share * served_s - 2 * PASS_S
        assert received_s[Lane.BATCH] >= batch_share * served_s - 3 * PASS_S
    assert served_s > 40 * PASS_S

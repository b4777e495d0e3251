"""Limits that make no sense are refused where they are built, with the field and the value."""

from math import inf, nan

import pytest

from batching import Lane, Limits


def build(**changes: object) -> Limits:
    fields = {"max_pass_s": 0.03, "max_document_pass_s": 0.2, "fill_s": 0.01, "max_pass_tokens": 512}
    return Limits(**(fields | changes))  # type: ignore[arg-type]


def test_defaults_give_documents_15_percent_and_batch_work_5_and_bound_every_lane():
    limits = build()
    assert limits.shares == {Lane.DOCUMENT: 0.15, Lane.BATCH: 0.05}
    assert (limits.max_wait_s, limits.interruption_share) == (0, 0.05)
    assert set(limits.max_waiting_entries) == set(limits.max_waiting_s) == set(Lane)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_pass_s": 0.0}, "max_pass_s is 0.0; it must be a number of seconds"),
        ({"max_pass_s": inf}, "max_pass_s is inf; it must be a number of seconds"),
        ({"max_document_pass_s": nan}, "max_document_pass_s is nan; it must be a number of seconds"),
        (
            {"max_document_pass_s": 0.02},
            "max_document_pass_s is 0.02; it must be at least max_pass_s, 0.03",
        ),
        ({"fill_s": 0.031}, "fill_s is 0.031; it must be between 0 and max_pass_s, 0.03"),
        ({"fill_s": -0.1}, "fill_s is -0.1; it must be between 0 and max_pass_s, 0.03"),
        ({"max_pass_tokens": 0}, "max_pass_tokens is 0; it must be at least 1"),
        ({"max_pass_entries": 0}, "max_pass_entries is 0; it must be at least 1"),
        ({"max_wait_s": -0.1}, "max_wait_s is -0.1; it must be 0 or a number of seconds"),
        ({"quiet_after_s": nan}, "quiet_after_s is nan; it must be 0 or a number of seconds"),
        ({"query_slo_s": inf}, "query_slo_s is inf; it must be 0 or a number of seconds"),
        ({"shares": {Lane.QUERY: 0.5}}, "the query lane has no share: it goes first anyway"),
        (
            {"shares": {Lane.BATCH: 1.0}},
            "the share of the batch lane is 1.0; it must be at least 0 and below 1",
        ),
        (
            {"shares": {Lane.DOCUMENT: -0.1}},
            "the share of the document lane is -0.1; it must be at least 0 and below 1",
        ),
        (
            {"shares": {Lane.DOCUMENT: 0.6, Lane.BATCH: 0.4}},
            "the shares add up to 1; the queries need the rest, so it must be below 1",
        ),
        ({"interruption_share": 1.0}, "interruption_share is 1.0; it must be at least 0 and below 1"),
        (
            {"max_waiting_entries": {Lane.QUERY: 1, Lane.DOCUMENT: 1}},
            "max_waiting_entries has no value for the batch lane",
        ),
        (
            {"max_waiting_s": dict.fromkeys(Lane, 0.0)},
            "max_waiting_s of the query lane is 0.0; it must be more than 0",
        ),
    ],
)
def test_a_limit_that_makes_no_sense_is_named_with_its_value(changes: dict[str, object], message: str):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared below
        build(**changes)
    assert str(raised.value) == message


@pytest.mark.parametrize("changes", [{"fill_s": 0.0}, {"fill_s": 0.03}, {"max_document_pass_s": 0.03}])
def test_the_ends_of_each_range_are_allowed(changes: dict[str, float]):
    limits = build(**changes)
    assert {name: getattr(limits, name) for name in changes} == changes


@pytest.mark.parametrize("name", ["shares", "max_waiting_entries", "max_waiting_s"])
def test_limits_do_not_change_with_the_mapping_they_were_built_from(name: str):
    given: dict[Lane, float] = {Lane.DOCUMENT: 0.25, Lane.BATCH: 0.25}
    if name != "shares":
        given[Lane.QUERY] = 0.25
    limits = build(**{name: given})
    given[Lane.DOCUMENT] = 0.75
    assert getattr(limits, name)[Lane.DOCUMENT] == 0.25

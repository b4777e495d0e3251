"""Limits that make no sense are refused where they are built, with the field and the value."""

import pytest

from batching import Lane, Limits


def build(**changes: object) -> Limits:
    return Limits(**({"max_pass_tokens": 512, "fill_tokens": 128} | changes))  # type: ignore[arg-type]


def test_defaults_give_documents_15_percent_and_batch_work_5():
    limits = build()
    assert limits.shares == {Lane.DOCUMENT: 0.15, Lane.BATCH: 0.05}
    assert limits.max_wait_s == 0
    assert set(limits.max_waiting_entries) == set(limits.max_waiting_tokens) == set(Lane)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_pass_tokens": 0}, "max_pass_tokens is 0; it must be at least 1"),
        ({"fill_tokens": 513}, "fill_tokens is 513; it must be between 0 and max_pass_tokens, 512"),
        ({"fill_tokens": -1}, "fill_tokens is -1; it must be between 0 and max_pass_tokens, 512"),
        ({"max_pass_entries": 0}, "max_pass_entries is 0; it must be at least 1"),
        ({"max_wait_s": -0.1}, "max_wait_s is -0.1; it must be 0 or a number of seconds"),
        ({"max_wait_s": float("nan")}, "max_wait_s is nan; it must be 0 or a number of seconds"),
        ({"shares": {Lane.QUERY: 0.5}}, "the query lane has no share: it goes first anyway"),
        (
            {"shares": {Lane.BATCH: 1.0}},
            "the share of the batch lane is 1.0; it must be at least 0 and below 1",
        ),
        (
            {"shares": {Lane.DOCUMENT: 0.6, Lane.BATCH: 0.4}},
            "the shares add up to 1; the queries need the rest, so it must be below 1",
        ),
        (
            {"max_waiting_entries": {Lane.QUERY: 1, Lane.DOCUMENT: 1}},
            "max_waiting_entries has no value for the batch lane",
        ),
        (
            {"max_waiting_tokens": dict.fromkeys(Lane, 0)},
            "max_waiting_tokens of the query lane is 0; it must be at least 1",
        ),
    ],
)
def test_a_limit_that_makes_no_sense_is_named_with_its_value(changes: dict[str, object], message: str):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared below
        build(**changes)
    assert str(raised.value) == message


def test_limits_do_not_change_with_the_mapping_they_were_built_from():
    shares = {Lane.DOCUMENT: 0.15}
    limits = build(shares=shares)
    shares[Lane.DOCUMENT] = 0.9
    assert limits.shares[Lane.DOCUMENT] == 0.15

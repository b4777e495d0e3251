"""Which lane, and until when."""

import pytest

from app.errors import InvalidRequestError
from app.lanes import choose_lane, choose_timeout_s
from app.prompts import Side
from batching import Lane


def lane(
    priority: int | str | None = None,
    header: str | None = None,
    sides: frozenset[Side] = frozenset(),
    num: int = 1,
) -> Lane:
    return choose_lane(priority=priority, header_priority=header, sides=sides, num_inputs=num)


QUERIES, DOCUMENTS = frozenset({Side.QUERY}), frozenset({Side.DOCUMENT})


@pytest.mark.parametrize(
    ("priority", "expected"),
    [
        (-(10**18), Lane.QUERY),
        (-1, Lane.QUERY),
        (1, Lane.DOCUMENT),
        (9, Lane.DOCUMENT),
        (10, Lane.BATCH),
        (10**18, Lane.BATCH),
        ("query", Lane.QUERY),
        (" Batch ", Lane.BATCH),
        ("-3", Lane.QUERY),
        ("12", Lane.BATCH),
    ],
)
def test_a_priority_is_a_number_or_a_lanes_name(priority: int | str, expected: Lane):
    """Lower is sooner, as Cohere and vLLM have it."""
    assert lane(priority, sides=QUERIES if expected is not Lane.QUERY else DOCUMENTS) is expected


@pytest.mark.parametrize("silent", [None, 0, "0", "-0"])
def test_priority_zero_says_nothing(silent: int | str | None):
    """SDKs fill it in as their default."""
    assert lane(silent, sides=DOCUMENTS) is Lane.DOCUMENT


def test_body_before_header_before_input_type_before_shape():
    assert lane("batch", "query", DOCUMENTS) is Lane.BATCH
    assert lane(0, "query", DOCUMENTS) is Lane.QUERY
    assert lane(None, None, DOCUMENTS) is Lane.DOCUMENT
    assert lane(None, None, QUERIES, num=2048) is Lane.QUERY
    assert lane(None, None, QUERIES | DOCUMENTS) is Lane.DOCUMENT
    assert lane(num=1) is Lane.QUERY
    assert lane(num=2) is Lane.DOCUMENT


@pytest.mark.parametrize("bad", ["soon", "", "1.5", "٣", "--1", "9" * 21])
def test_a_priority_that_makes_no_sense_is_refused(bad: str):
    with pytest.raises(InvalidRequestError) as caught:
        lane(None, bad)
    assert caught.value.message.endswith(
        "is not a priority: send a whole number or one of query, document, batch."
    )
    assert caught.value.param == "X-Priority"


def test_a_deadline_comes_from_the_body_else_from_the_sdk_else_from_the_settings():
    """Work whose client has timed out is work for nobody."""
    sdk = {"x-stainless-read-timeout": "60"}
    assert choose_timeout_s(timeout_ms=250, headers=sdk, default_s=600) == 0.25
    assert choose_timeout_s(timeout_ms=None, headers=sdk, default_s=600) == 60
    assert choose_timeout_s(timeout_ms=None, headers={}, default_s=600) == 600


@pytest.mark.parametrize("timeout_ms", [1e308, 10**400, 86_400_001])
def test_a_deadline_is_a_day_away_at_most(timeout_ms: float):
    """Event loops refuse to wait for the numbers that JSON can hold."""
    assert choose_timeout_s(timeout_ms=timeout_ms, headers={}, default_s=600) == 86_400
    headers = {"x-stainless-read-timeout": "1e300"}
    assert choose_timeout_s(timeout_ms=None, headers=headers, default_s=600) == 86_400


@pytest.mark.parametrize("text", ["", "None", "nan", "inf", "-1", "0", "1e999"])
def test_an_sdk_timeout_that_makes_no_sense_is_no_statement(text: str):
    headers = {"x-stainless-read-timeout": text}
    assert choose_timeout_s(timeout_ms=None, headers=headers, default_s=600) == 600


@pytest.mark.parametrize("timeout_ms", [0, -5])
def test_a_deadline_in_the_past_is_refused(timeout_ms: int):
    with pytest.raises(
        InvalidRequestError, match=f"^'timeout_ms' must be greater than 0, not {timeout_ms}\\.$"
    ):
        choose_timeout_s(timeout_ms=timeout_ms, headers={}, default_s=600)

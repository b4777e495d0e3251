"""A worker's lines are the gateway's, read by the same collector."""

import json
import logging
import sys

import app.logs
from model.worker.logs import JsonFormatter, TextFormatter, of_pass, one_line


def failed_record() -> logging.LogRecord:
    try:
        raise ValueError("shape mismatch:\n  expected 3\n  got 4 é")
    except ValueError:
        return logging.LogRecord(
            "laneway.worker", logging.ERROR, __file__, 1, "a pass of %d inputs\nfailed", (3,), sys.exc_info()
        )


def test_a_json_line_has_the_gateways_keys_and_its_process():
    """The rooms share no code; this is what keeps their keys the same."""
    record = failed_record()
    ours = json.loads(JsonFormatter().format(record))
    theirs = json.loads(app.logs.JsonFormatter().format(record))
    assert ours.pop("pid") == record.process
    assert ours.keys() == theirs.keys()
    assert ours.pop("exception").startswith("ValueError: ")
    del theirs["exception"]  # over many lines there
    assert ours == theirs


def test_a_pass_is_named_in_the_place_where_the_gateway_looks_too():
    """A worker without a process logs with the gateway's formatter."""
    record = failed_record()
    record.__dict__.update(of_pass(1234, 7))
    for formatter in (JsonFormatter(), app.logs.JsonFormatter()):
        line = json.loads(formatter.format(record))
        assert (line["pid"], line["pass"]) == (1234, 7)


def test_whatever_is_logged_is_one_line_of_ascii_json():
    line = JsonFormatter().format(failed_record())
    assert line.isascii()
    assert "\n" not in line
    exception = json.loads(line)["exception"]
    assert exception.startswith("ValueError: shape mismatch: expected 3 got 4 é [failed_record (")


def test_a_text_line_is_one_line_too():
    line = TextFormatter().format(failed_record())
    assert line.startswith("ERROR worker[")
    assert "] a pass of 3 inputs | failed | ValueError: shape mismatch: expected 3 got 4" in line
    assert "\n" not in line


def test_a_long_text_is_cut():
    assert one_line("x" * 1000) == "x" * 400 + "..."

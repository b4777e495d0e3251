"""What people read while the server comes up, and when it is there."""

import base64
import io
import json
import logging
import shlex
from dataclasses import replace

import pytest
from PIL import Image

from app.console import RED_SQUARE, Serving, StageLog, announce, banner, first_requests, split_percent
from app.settings import LimitSettings, ServerSettings
from model import ImageInputs, ImageSpec, ImageTokens, ModelInfo
from model.images.spec import ResizeRule

NOTE = "Its vectors mean nothing."
IMAGES = ImageInputs(
    spec=ImageSpec(patch_size=14, merge_size=2, resizes=(ResizeRule(min_tokens=256, max_tokens=1280),)),
    tokens=ImageTokens(start=(1,), pad=2, end=(3,)),
    max_images=1,
    is_fused_with_text=True,
)


def serving(**changes: object) -> Serving:
    info = ModelInfo(
        source="minilm", family="sentence-transformers", architecture="BertModel", dimension=384, max_tokens=256,
        vocab_size=30522, num_parameters=22_713_216, dtype="float32", device="cpu", pooling="mean", is_normalized=True,
        is_packed=True, packing_note="", prompts={}, default_prompt_name=None, include_prompt=True,
        matryoshka_dimensions=(), tokenizer_json="{}", fingerprint="f" * 64,
    )  # fmt: skip
    facts: dict[str, object] = {
        "url": "http://127.0.0.1:8000", "is_public": False, "name": "all-MiniLM-L6-v2", "info": info, "worker_pids": (5676, 5677),
        "server": ServerSettings(), "limits": LimitSettings(), "version": "1.2.3", "ready_after_s": 3.21,
    }  # fmt: skip
    return Serving(**{**facts, **changes})  # type: ignore[arg-type]


def serving_images() -> Serving:
    return serving(info=replace(serving().info, images=IMAGES, note=NOTE))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stage", "parts"),
    [("downloading 43%", ("downloading", 43)), ("warming up", ("warming up", None)), ("loading weights 100%", ("loading weights", 100))],
)  # fmt: skip
def test_a_stage_is_a_name_and_perhaps_a_number(stage: str, parts: tuple[str, int | None]):
    assert split_percent(stage) == parts


def test_the_log_has_a_line_for_each_stage_and_one_each_ten_seconds(caplog: pytest.LogCaptureFixture):
    """A download reports a hundred times a second; a log is read by people."""
    now_s = 0.0
    log = StageLog(clock=lambda: now_s)
    with caplog.at_level(logging.INFO, logger="app.console"):
        for second in range(26):
            now_s = float(second)
            log(f"downloading {second}%")
        log("loading weights")
    assert caplog.messages == ["downloading 0%", "downloading 10%", "downloading 20%", "loading weights"]


def test_a_hundred_stages_at_once_are_one_line(caplog: pytest.LogCaptureFixture):
    """Weights of a small model load within milliseconds, tensor by tensor."""
    now_s = 100.0
    log = StageLog(clock=lambda: now_s)
    with caplog.at_level(logging.INFO, logger="app.console"):
        for percent in range(101):
            now_s += 0.0001
            log(f"loading weights {percent}%")
        log("probing packed passes")
    assert caplog.messages == ["loading weights 0%", "probing packed passes"]


def test_the_banner_has_all_that_a_first_request_needs():
    shown = banner(serving())
    assert "Laneway 1.2.3 is ready after 3.2 s." in shown
    for row in (
        "  address  http://127.0.0.1:8000/v1\n",
        "  model    all-MiniLM-L6-v2: 384 dimensions, 256 tokens an input\n",
        "  reads    texts\n",
        "  runs on  cpu in float32, 2 workers, packed passes\n",
        "  limits   2,048 inputs, 300,000 tokens, 64 MiB a request\n",
        "  live     http://127.0.0.1:8000/ui, or laneway top\n",
        "  docs     http://127.0.0.1:8000/docs\n",
        "  metrics  http://127.0.0.1:8000/metrics\n",
        """-d '{"model": "all-MiniLM-L6-v2", "input": "Hello, world"}'\n""",
        """client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")\n""",
    ):
        assert row in shown


def test_the_banner_of_a_model_of_images_says_what_an_image_costs():
    assert "  reads    texts, images; an image is 256 to 1,280 tokens\n" in banner(serving_images())


def test_the_first_requests_to_a_model_of_images_hold_one():
    """They are pasted as they stand, so they must be whole."""
    shell, python = first_requests(serving_images()).split("or in Python:")
    program, url, _, _, _, body = shlex.split(shell.replace("\\\n", ""))
    assert (program, url) == ("curl", "http://127.0.0.1:8000/v1/embeddings")
    assert json.loads(body)["input"] == [{"text": "a red square"}, {"image": RED_SQUARE}]
    assert python.splitlines()[-2:] == [
        f'  image = "{RED_SQUARE}"',
        '  client.embeddings.create(model="all-MiniLM-L6-v2", input=["a red square", {"image": image}])',
    ]
    with Image.open(io.BytesIO(base64.b64decode(RED_SQUARE.partition(",")[2]))) as image:
        assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (4, 4), (220, 30, 30))


@pytest.mark.parametrize(("no_colour", "shown"), [("", f"  \x1b[33m{NOTE}\x1b[0m\n"), ("1", f"  {NOTE}\n")])
def test_a_terminal_shows_in_yellow_what_one_has_to_know(monkeypatch, no_colour: str, shown: str):
    terminal = Terminal()
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setattr("sys.stdout", terminal)
    announce(serving_images())
    assert shown in terminal.getvalue()


def test_a_log_warns_of_what_one_has_to_know(monkeypatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with caplog.at_level(logging.INFO, logger="app.console"):
        announce(serving_images())
    warning, ready = caplog.records
    assert (warning.levelname, warning.getMessage()) == ("WARNING", f"all-MiniLM-L6-v2: {NOTE}")
    assert "384 dimensions, texts, images, 256 tokens" in ready.getMessage()


def test_the_banner_says_when_other_machines_can_reach_the_server():
    """It has no keys yet; nobody should open it without knowing."""
    assert "http://127.0.0.1:8000/v1, open to other machines\n" in banner(serving(is_public=True))


def test_a_terminal_gets_the_banner_and_a_log_one_line(monkeypatch, caplog: pytest.LogCaptureFixture):
    terminal, pipe = Terminal(), io.StringIO()
    with caplog.at_level(logging.INFO, logger="app.console"):
        monkeypatch.setattr("sys.stdout", terminal)
        announce(serving())
        assert caplog.messages == []
        monkeypatch.setattr("sys.stdout", pipe)
        announce(serving())
    assert terminal.getvalue() == banner(serving()) + "\n"
    assert pipe.getvalue() == ""
    assert caplog.messages == [
        "ready after 3.2 s: all-MiniLM-L6-v2 on http://127.0.0.1:8000/v1, 384 dimensions, texts, 256 tokens an input; "
        "2,048 inputs, 300,000 tokens, 64 MiB a request; worker 0 has pid 5676, worker 1 has pid 5677"
    ]
    facts = caplog.records[0].__dict__["fields"]
    assert (facts["workers"], facts["worker_pids"]) == (2, (5676, 5677))
    assert (facts["max_inputs"], facts["max_request_tokens"], facts["max_body_bytes"]) == (
        2048,
        300_000,
        2**26,
    )

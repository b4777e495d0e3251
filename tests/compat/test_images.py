"""Images through the real server: every spelling, every endpoint, and everything that must not get in."""

import base64
import http.server
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from tests.compat.conftest import RunningServer
from tests.model.images import corpus

DATA = Path(__file__).parents[1] / "data"
REFERENCE = json.loads((DATA / "gme_reference" / "reference.json").read_text())
CASES: list[dict[str, Any]] = REFERENCE["cases"]
MODEL = "tiny-gme"


def data_uri(name: str) -> str:
    return in_data_uri((DATA / "gme_reference" / name).read_bytes())


def in_data_uri(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


@pytest.fixture(scope="module")
def client(golden_server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=golden_server.base_url, api_key="none", max_retries=0) as client:
        yield client


def embed(client: OpenAI, inputs: object, **fields: object) -> np.ndarray:
    answer = client.embeddings.create(model=MODEL, input=inputs, extra_body=fields or None)  # type: ignore[arg-type]
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data], dtype=np.float32)


# The reference ---------------------------------------------------------------------------------------------


def item_of(case: dict[str, Any]) -> dict[str, str]:
    item = {"input_type": "query" if case["is_query"] else "document"}
    if case["text"] is not None:
        item["text"] = case["text"]
    if case["image"] is not None:
        item["image"] = data_uri(case["image"])
    if case["instruction"] is not None:
        item["instruction"] = case["instruction"]
    return item


def test_all_reference_vectors_come_through_http_in_one_request(client: OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=[item_of(case) for case in CASES])  # type: ignore[misc]
    vectors = np.array([one.embedding for one in answer.data])
    expected = np.array([case["embedding"] for case in CASES])
    assert np.abs(vectors - expected).max() <= REFERENCE["tolerance"] == 2e-6
    num_tokens = sum(case["num_tokens"] for case in CASES)
    assert answer.usage.prompt_tokens == num_tokens
    details = (answer.usage.model_extra or {})["prompt_tokens_details"]
    assert details["image_count"] == sum(case["image"] is not None for case in CASES)
    assert details["text_tokens"] + details["image_tokens"] == num_tokens


def test_each_reference_vector_comes_alone_too_and_in_any_order(client: OpenAI) -> None:
    shuffled = [CASES[index] for index in np.random.default_rng(0).permutation(len(CASES))]
    for case in shuffled:
        [vector] = embed(client, [item_of(case)])
        assert np.abs(vector - np.array(case["embedding"])).max() <= REFERENCE["tolerance"]
    together = embed(client, [item_of(case) for case in shuffled])
    assert (
        np.abs(together - np.array([case["embedding"] for case in shuffled])).max() <= REFERENCE["tolerance"]
    )


def test_special_tokens_in_a_text_are_text(client: OpenAI) -> None:
    """A page about this very model must not become a prompt, or an image that is not there."""
    page = "Put <|image_pad|> between <|vision_start|> and <|vision_end|>, then <|im_end|> and <|endoftext|>."
    spelled = page.replace("<|", "< |")
    answer = client.embeddings.create(model=MODEL, input=[page, spelled])
    vectors = np.array([one.embedding for one in answer.data])
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
    alone = embed(client, ["before", page, "after"])
    assert np.abs(alone[1] - vectors[0]).max() <= 2e-6
    assert answer.usage.prompt_tokens > 2 * len("Put <|image_pad|> between <|vision_start|> and")


# Spellings -------------------------------------------------------------------------------------------------

IMAGE = data_uri("image1.png")
TEXT = "What kind of car is this?"
IMAGE_SPELLINGS: dict[str, object] = {
    "whole string": IMAGE,
    "item": {"image": IMAGE},
    "item of raw base64": {"image": IMAGE.partition(",")[2]},
    "content of one part": {"content": [{"type": "image_url", "image_url": {"url": IMAGE}}]},
    "content with a plain string": {"content": [{"type": "image_url", "image_url": IMAGE}]},
    "content with detail": {
        "content": [{"type": "image_url", "image_url": {"url": IMAGE, "detail": "high"}}]
    },
    "Voyage's part": {"content": [{"type": "image_base64", "image_base64": IMAGE}]},
    "Qwen's part": {"content": [{"type": "image", "image": IMAGE}]},
    "the Responses API's part": {"content": [{"type": "input_image", "image_url": IMAGE}]},
    "nested parts": [{"type": "image_url", "image_url": {"url": IMAGE}}],
}
FUSED_SPELLINGS: dict[str, object] = {
    "item": {"text": TEXT, "image": IMAGE},
    "item, image first": {"image": IMAGE, "text": TEXT},
    "content": {
        "content": [{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    },
    "nested parts": [{"type": "image", "image": IMAGE}, {"type": "text", "text": TEXT}],
}


def test_every_spelling_of_an_image_is_the_same_vector(client: OpenAI) -> None:
    vectors = embed(client, list(IMAGE_SPELLINGS.values()))
    [expected] = [case["embedding"] for case in CASES if case["image"] == "image1.png" and not case["text"]]
    for name, vector in zip(IMAGE_SPELLINGS, vectors, strict=True):
        assert np.abs(vector - np.array(expected)).max() <= 2e-6, name


def test_every_spelling_of_text_and_image_is_the_same_vector(client: OpenAI) -> None:
    vectors = embed(client, list(FUSED_SPELLINGS.values()))
    for name, vector in zip(FUSED_SPELLINGS, vectors, strict=True):
        assert np.abs(vector - vectors[0]).max() <= 2e-6, name
    [image_alone] = embed(client, IMAGE)
    assert not np.allclose(vectors[0], image_alone, atol=1e-3)


def test_a_conversation_is_one_vector(client: OpenAI) -> None:
    parts = [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": TEXT}]
    [expected] = embed(client, [parts])
    message = {"role": "user", "content": parts}
    as_input = embed(client, [message])
    answer = client.post(
        "/embeddings",
        cast_to=object,
        body={"model": MODEL, "messages": [message], "encoding_format": "float"},
    )
    assert np.abs(as_input[0] - expected).max() <= 2e-6
    assert np.abs(np.array(answer["data"][0]["embedding"]) - expected).max() <= 2e-6  # type: ignore[index]


def test_kinds_mix_in_one_request_and_each_is_a_vector(client: OpenAI) -> None:
    inputs = [TEXT, IMAGE, {"text": TEXT, "image": IMAGE}, [{"type": "text", "text": TEXT}]]
    vectors = embed(client, inputs)
    assert vectors.shape == (4, 64)
    assert np.abs(vectors[0] - vectors[3]).max() <= 2e-6
    for index, one in enumerate(inputs):
        [alone] = embed(client, [one])
        assert np.abs(vectors[index] - alone).max() <= 2e-6


def test_a_string_is_read_as_its_modality_says(client: OpenAI) -> None:
    [as_text] = embed(client, IMAGE[:200], modality="text")
    assert as_text.shape == (64,)
    [as_image] = embed(client, IMAGE.partition(",")[2], modality="image")
    [expected] = embed(client, IMAGE)
    assert np.abs(as_image - expected).max() <= 2e-6


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"imgae": IMAGE}, "input[0]"),
        ({"content": [{"type": "image_url", "image_url": {"url": IMAGE, "urls": []}}]}, "input[0].content"),
        ({"content": [{"type": "picture", "image": IMAGE}]}, "input[0].content"),
        ({"content": [{"type": "image", "image": IMAGE}, {"type": "image", "image": IMAGE}]}, "input[0]"),
        ({"image": "data:image/png;base64,@@@@"}, "input[0].image"),
        ({"image": in_data_uri(b"<svg/>")}, "input[0].image"),
        ({"image": "file:///etc/passwd"}, "input[0].image"),
    ],
)
def test_what_is_wrong_with_an_item_is_said_by_name(client: OpenAI, item: object, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        embed(client, [item])
    assert (refusal.value.param or "").startswith(param)
    embed(client, "the next request is served")


def test_bare_parts_are_refused_with_a_hint(client: OpenAI) -> None:
    """Some vendors make one vector of them and some make several: nobody can guess."""
    with pytest.raises(openai.BadRequestError, match="content") as refusal:
        embed(client, [{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": IMAGE}}])
    assert (refusal.value.param or "").startswith("input")


# Files -----------------------------------------------------------------------------------------------------


def test_every_good_file_is_embedded(client: OpenAI) -> None:
    files = corpus.good_files()
    vectors = embed(client, [{"image": in_data_uri(file)} for file, _ in files.values()])
    assert np.isfinite(vectors).all()
    by_colour: dict[tuple[int, int, int], np.ndarray] = {}
    for (name, (_, colour)), vector in zip(files.items(), vectors, strict=True):
        assert np.abs(vector - by_colour.setdefault(colour, vector)).max() <= 2e-2, name


@pytest.mark.parametrize("name", [*corpus.bad_files(), *corpus.bombs()])
def test_every_bad_file_is_a_clean_400(client: OpenAI, name: str) -> None:
    file = {**corpus.bad_files(), **corpus.bombs()}[name]
    with pytest.raises(openai.BadRequestError) as refusal:
        embed(client, [TEXT, {"image": in_data_uri(file)}])
    assert refusal.value.param == "input[1].image"
    assert refusal.value.code in ("invalid_image", "image_too_large")
    for inside in ("0x", "PIL", "BytesIO", "object at", "Traceback", "/"):
        assert inside not in refusal.value.message.partition("{")[0].replace("image/png", ""), name


# URLs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inner() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, which holds an image that no URL may reach; it counts who comes."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            body = (DATA / "gme_reference" / "image0.png").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"{server.server_port}", hits
    server.shutdown()
    server.server_close()
    thread.join()


HOSTS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0",
    "localhost",
    "LOCALHOST",
    "①②⑦.⓪.⓪.①",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "169.254.169.254",
    "10.0.0.1",
    "user@127.0.0.1",
    "1.1.1.1\\@127.0.0.1",
]


def bodies_with_image(url: str) -> dict[str, dict[str, object]]:
    """A request to every endpoint that takes images."""
    part = {"type": "image_url", "image_url": {"url": url}}
    return {
        "/v1/embeddings": {"model": MODEL, "input": [{"image": url}]},
        "/embeddings": {"model": MODEL, "input": [[part]]},
        "/embeddings/image": {"images": [url]},
        "/embeddings/fused": {"texts": ["a"], "images": [url]},
        "/similarity": {"texts": ["a"], "images": [url]},
        "/v2/embed": {"model": MODEL, "input_type": "image", "inputs": [{"content": [part]}]},
        "/v1/multimodalembeddings": {
            "model": MODEL,
            "inputs": [{"content": [{"type": "image_url", "image_url": url}]}],
        },
    }


@pytest.mark.parametrize("host", HOSTS)
def test_no_endpoint_reaches_an_inner_address(
    golden_server: RunningServer, inner: tuple[str, list[str]], host: str
) -> None:
    port, hits = inner
    answers: dict[str, tuple[int, dict[str, Any]]] = {}
    for path, body in bodies_with_image(f"http://{host}:{port}/secret.png").items():
        answers[path] = post(f"{golden_server.root}{path}", body)
    assert hits == []
    assert {path: status for path, (status, _) in answers.items()} == dict.fromkeys(answers, 400)
    assert {answer["error"]["code"] for _, answer in answers.values()} == {"invalid_image"}


def test_closed_doors_all_look_alike(golden_server: RunningServer, inner: tuple[str, list[str]]) -> None:
    """An open port, a closed port and no such host must not be told apart from outside."""
    port, _ = inner
    messages = {
        post(f"{golden_server.root}/v1/embeddings", {"model": MODEL, "input": [{"image": url}]})[1]["error"][
            "message"
        ]
        for url in (
            f"http://127.0.0.1:{port}/",
            "http://127.0.0.1:1/",
            "http://localhost/",
            "http://no-such-host.invalid/",
        )
    }
    assert len(messages) == 1


def post(url: str, body: dict[str, object]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)

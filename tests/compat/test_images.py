"""Images through the real server: every spelling, every endpoint, and everything that must not get in."""

import base64
import contextlib
import http.server
import json
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openai
import pytest
from openai import OpenAI

from tests.model.images import corpus
from tests.servers import GOLDEN_CHECKPOINT, RunningServer, start_server

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


IMAGE_FILE = (DATA / "gme_reference" / "image0.png").read_bytes()


class InnerHandler(http.server.BaseHTTPRequestHandler):
    """Hands an image to whoever comes, and counts them."""

    hits: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.hits.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(IMAGE_FILE)))
        self.end_headers()
        self.wfile.write(IMAGE_FILE)

    def log_message(self, *_: object) -> None:
        pass


class InnerServerV6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


@pytest.fixture(scope="module")
def inner_port() -> Iterator[int]:
    """Of a server on this machine, under both of its addresses, which no URL may reach."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), InnerHandler)]
    port = servers[0].server_port
    with contextlib.suppress(OSError):  # no IPv6 here
        servers.append(InnerServerV6(("::1", port), InnerHandler))
    threads = [threading.Thread(target=one.serve_forever) for one in servers]
    for thread in threads:
        thread.start()
    yield port
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hits(inner_port: int) -> list[str]:
    """Who has come to the inner server; nobody yet, although it answers."""
    InnerHandler.hits.clear()
    with urllib.request.urlopen(f"http://127.0.0.1:{inner_port}/control.png", timeout=30) as answer:
        assert answer.read() == IMAGE_FILE
    assert InnerHandler.hits == ["/control.png"]
    InnerHandler.hits.clear()
    return InnerHandler.hits


@pytest.fixture(scope="module")
def trusting_server(inner_port: int, own_name: str) -> Iterator[RunningServer]:
    """A server whose allowlist names the inner one, port and all: nothing but its address keeps it safe."""
    listed = [f"--media-hosts={host}:{inner_port}" for host in (own_name, *ODD_SPELLINGS)]
    running = start_server(str(GOLDEN_CHECKPOINT), "--workers", "1", "--media-urls", "allowlist", *listed)
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0


ODD_SPELLINGS = ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0"]
"""Of this machine's own address, for resolvers that know them; an allowlist may hold them."""
HOSTS = [
    *ODD_SPELLINGS,
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "①②⑦.⓪.⓪.①",
    "169.254.169.254",
    "10.0.0.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "user@127.0.0.1",
    "1.1.1.1\\@127.0.0.1",
]


@pytest.fixture(scope="module")
def own_name() -> str:
    """A name that leads to this machine alone, and that no configuration can know to do so."""
    aliases = Path("/etc/hosts").read_text().split()
    for name in dict.fromkeys((socket.gethostname(), *aliases)):
        if re.fullmatch(r"[a-z][a-z0-9_.-]*", name) and "localhost" not in name:
            with contextlib.suppress(OSError):
                found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                if {str(address[0]) for *_, address in found} <= {"127.0.0.1", "::1"}:
                    return name
    pytest.skip("no name but localhost leads to this machine's own address")


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
def test_no_endpoint_reaches_an_inner_address_whatever_is_listed(
    trusting_server: RunningServer, inner_port: int, hits: list[str], host: str
) -> None:
    assert_refused(trusting_server, f"http://{host}:{inner_port}/secret.png")
    assert hits == []


def test_no_endpoint_reaches_a_listed_host_at_an_inner_address(
    trusting_server: RunningServer, inner_port: int, own_name: str, hits: list[str]
) -> None:
    """Host and port are allowed, and somebody listens there."""
    before = fetch_outcomes(trusting_server)
    answers = assert_refused(trusting_server, f"http://{own_name}:{inner_port}/secret.png")
    assert hits == []
    assert fetch_outcomes(trusting_server)["blocked"] - before["blocked"] == len(answers)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", HOSTS)
def test_no_endpoint_tries_an_inner_address_on_the_webs_own_ports(
    golden_server: RunningServer, host: str, scheme: str
) -> None:
    """Whoever listens there: a connection that was tried would count as anything but blocked."""
    before = fetch_outcomes(golden_server)
    assert_refused(golden_server, f"{scheme}://{host}/secret.png")
    after = fetch_outcomes(golden_server)
    assert {outcome for outcome in after if after[outcome] != before[outcome]} <= {"blocked"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254"])
def test_what_reads_as_a_proper_url_is_stopped_by_its_address(
    golden_server: RunningServer, host: str
) -> None:
    """So that the tests above test what they are there for."""
    before = fetch_outcomes(golden_server)
    answers = assert_refused(golden_server, f"http://{host}/secret.png")
    assert fetch_outcomes(golden_server)["blocked"] - before["blocked"] == len(answers)


@pytest.mark.parametrize("host", HOSTS)
def test_no_endpoint_reaches_another_port_of_an_inner_address(
    golden_server: RunningServer, inner_port: int, hits: list[str], host: str
) -> None:
    assert_refused(golden_server, f"http://{host}:{inner_port}/secret.png")
    assert hits == []


@pytest.mark.parametrize("server_name", ["golden_server", "trusting_server"])
def test_closed_doors_all_look_alike(
    server_name: str, request: pytest.FixtureRequest, inner_port: int, hits: list[str]
) -> None:
    """An open port, a closed port and no such host must not be told apart from outside."""
    server: RunningServer = request.getfixturevalue(server_name)
    messages = {
        post(f"{server.root}/v1/embeddings", {"model": MODEL, "input": [{"image": url}]})[1]["error"][
            "message"
        ]
        for url in (
            f"http://127.0.0.1:{inner_port}/",
            "http://127.0.0.1:1/",
            "http://localhost/",
            "http://no-such-host.invalid/",
        )
    }
    assert len(messages) == 1
    assert hits == []


def assert_refused(server: RunningServer, url: str) -> dict[str, tuple[int, dict[str, Any]]]:
    """Ask every endpoint for the image; each has to answer that it cannot have it."""
    answers = {path: post(f"{server.root}{path}", body) for path, body in bodies_with_image(url).items()}
    assert {path: status for path, (status, _) in answers.items()} == dict.fromkeys(answers, 400)
    assert {answer["error"]["code"] for _, answer in answers.values()} == {"invalid_image"}
    return answers


def fetch_outcomes(server: RunningServer) -> dict[str, float]:
    """What became of all image URLs so far, as the server counts it."""
    with urllib.request.urlopen(f"{server.root}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = (re.fullmatch(r'laneway_image_fetches_total\{outcome="(\w+)"\} (\S+)', line) for line in lines)
    outcomes = {match[1]: float(match[2]) for match in found if match}
    assert {"blocked", "unreachable", "timeout"} <= set(outcomes)
    return outcomes


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

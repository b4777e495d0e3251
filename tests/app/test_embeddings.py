"""``POST /v1/embeddings`` from a body to an answer."""

import asyncio
import base64
from dataclasses import replace

import numpy as np
import pytest

from app.tokens import Cl100kVocabulary, VocabularyError
from batching import Lane
from model import EmbeddingInput
from tests.app.fakes import IDLE, INFO, FakeEngine, Gateway, vector_of, with_settings


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/embeddings/"])
async def test_both_paths_answer_with_one_vector_an_input(path: str):
    answer = await Gateway().post(path, {"model": "tiny", "input": ["a b", "c"]})

    assert answer.status == 200
    assert answer.json["model"] == "tiny"
    assert answer.json["usage"]["prompt_tokens"] == 3
    for item, text in zip(answer.json["data"], ["a b", "c"], strict=True):
        expected = vector_of(EmbeddingInput(text=text))
        assert np.array_equal(np.array(item["embedding"], dtype=np.float32), expected)


async def test_base64_holds_the_same_vector():
    """It is what both SDKs ask for unless told otherwise."""
    answer = await Gateway().embed("a", encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(answer.json["data"][0]["embedding"]), dtype="<f4")
    assert np.array_equal(vector, vector_of(EmbeddingInput(text="a")))


async def test_fewer_dimensions_are_unit_vectors():
    answer = await Gateway().embed("a", dimensions=4)
    vector = np.array(answer.json["data"][0]["embedding"])
    head = vector_of(EmbeddingInput(text="a"))[:4]
    assert np.allclose(vector, head / np.linalg.norm(head))


async def test_an_alias_is_answered_under_the_models_own_name():
    """Whoever asked for text-embedding-3-small should be able to see what they got."""
    gateway = Gateway(FakeEngine(aliases=("org/tiny",)))
    for name in ("text-embedding-3-small", "org/tiny", "tiny-query"):
        answer = await gateway.post("/v1/embeddings", {"model": name, "input": "a"})
        assert (answer.status, answer.json["model"]) == (200, "tiny")
    assert gateway.engine.calls[-1].inputs[0].prompt_name == "query"


async def test_openais_names_can_be_switched_off():
    gateway = Gateway(settings=with_settings(model={"openai_aliases": False}))
    answer = await gateway.post("/v1/embeddings", {"model": "text-embedding-3-small", "input": "a"})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["message"] == "The model 'text-embedding-3-small' is not served here. Served: tiny."


async def test_lane_and_deadline_reach_the_engine():
    gateway = Gateway()
    await gateway.embed(["a"], {"X-Stainless-Read-Timeout": "60"})
    await gateway.embed(["a", "b"], {"X-Priority": "batch"}, timeout_ms=1500)
    assert [(call.lane, call.timeout_s) for call in gateway.engine.calls] == [
        (Lane.QUERY, 60.0),
        (Lane.BATCH, 1.5),
    ]


async def test_a_cut_input_is_never_silent():
    """The vector of half a text looks like any other."""
    gateway = Gateway()
    answer = await gateway.embed(["a", "b " * 30, "c " * 17])
    assert answer.headers["x-truncated-inputs"] == "2"
    assert gateway.sample("laneway_truncated_inputs_total", model="tiny") == 2
    assert "x-truncated-inputs" not in (await gateway.embed("a")).headers


async def test_headers_say_where_the_time_went():
    answer = await Gateway().embed("a")
    assert (answer.headers["x-queue-time-ms"], answer.headers["x-compute-time-ms"]) == ("1.5", "4.0")


async def test_rate_limit_headers_are_the_lanes_real_bounds():
    """A client that reads them can slow down before it is told to."""
    busy = replace(IDLE, num_waiting=384, num_waiting_tokens=800_000)
    lanes = {Lane.QUERY: IDLE, Lane.DOCUMENT: busy, Lane.BATCH: IDLE}
    gateway = Gateway(FakeEngine(lanes=lanes, queue_s=2.5))

    document = (await gateway.embed(["a", "b"])).headers
    query = (await gateway.embed("a")).headers

    assert document["x-ratelimit-limit-requests"] == "16384"
    assert document["x-ratelimit-remaining-requests"] == "16000"
    assert document["x-ratelimit-limit-tokens"] == "1000000"
    assert document["x-ratelimit-remaining-tokens"] == "200000"
    assert document["x-ratelimit-reset-requests"] == document["x-ratelimit-reset-tokens"] == "2.5s"
    assert query["x-ratelimit-remaining-requests"] == query["x-ratelimit-limit-requests"] == "2048"
    assert query["x-ratelimit-reset-requests"] == "0ms"


# Token arrays


async def test_langchains_default_gets_the_vector_of_its_text():
    """cl100k_base ids, unannounced: any other server embeds noise, or refuses."""
    gateway = Gateway()
    try:
        await gateway.app.state["services"].cl100k.get()
    except VocabularyError:
        pytest.skip("no package that ships cl100k_base is installed")

    by_ids = await gateway.embed([[15339, 1917]])
    by_text = await gateway.embed(["hello world"])

    assert by_ids.json["data"] == by_text.json["data"]
    assert by_ids.headers["x-token-encoding"] == "cl100k_base"
    assert "x-token-encoding" not in by_text.headers
    assert gateway.sample("laneway_token_array_requests_total", outcome="cl100k_base") == 1


async def test_without_the_vocabulary_the_answer_says_how_to_provide_it():
    gateway = Gateway(settings=with_settings(model={"cl100k_path": "/nowhere/cl100k_base.tiktoken"}))

    answer = await gateway.embed([[15339, 1917]])

    assert (answer.status, answer.error["code"]) == (400, "vocabulary_missing")
    assert answer.error["message"] == (
        "Token arrays are read as cl100k_base, but the file that cl100k_path names cannot be read. On the "
        "server, run `laneway pull cl100k` or set cl100k_path; or send strings. "
        "LangChain sends strings with check_embedding_ctx_length=False."
    )
    assert gateway.sample("laneway_token_array_requests_total", outcome="vocabulary_missing") == 1
    assert (await gateway.embed("a")).status == 200


async def test_more_ids_than_a_request_may_have_are_refused_before_they_are_looked_up():
    gateway = Gateway(settings=with_settings(limits={"max_request_tokens": 5}))
    answer = await gateway.embed([[1, 2, 3], [4, 5, 6]], token_encoding="model")
    assert (answer.status, answer.error["code"]) == (400, "max_tokens_per_request")
    assert answer.error["message"] == "Requested 6 tokens, max 5 tokens per request."


# Not ready


@pytest.mark.parametrize(
    ("stage", "code"),
    [
        ("downloading 43%", "model_loading"),
        ("failed", "model_failed"),
        ("draining", "shutting_down"),
    ],
)
async def test_while_the_model_is_not_ready_clients_are_told_to_come_back(stage: str, code: str):
    gateway = Gateway(FakeEngine(stage=stage))
    answer = await gateway.embed("a")
    assert (answer.status, answer.error["code"]) == (503, code)
    if code == "model_failed":
        assert answer.headers["x-should-retry"] == "false"
    else:
        assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_no_name_is_wrong_before_the_model_is_known():
    """A checkpoint brings names of its own, and the SDKs do not ask again after a 404."""
    gateway = Gateway(FakeEngine(stage="downloading 43%"))
    answer = await gateway.post("/v1/embeddings", {"model": "org/tiny", "input": "a"})
    assert (answer.status, answer.error["code"]) == (503, "model_loading")


async def test_while_the_workers_restart_requests_wait_instead_of_failing():
    assert (await Gateway(FakeEngine(stage="restarting")).embed("a")).status == 200


# Clients that leave


async def test_a_client_that_leaves_takes_its_work_along():
    """Litestar runs a handler to its end: the queue would fill up with work for nobody."""
    engine, leaves = FakeEngine(hold=asyncio.Event()), asyncio.Event()
    gateway = Gateway(engine)

    pending = asyncio.create_task(
        gateway.request("POST", "/v1/embeddings", b'{"model": "tiny", "input": "a"}', leaves=leaves)
    )
    await engine.started.wait()
    assert gateway.sample("laneway_requests_in_flight") == 1
    leaves.set()
    answer = await pending

    assert (answer.status, answer.error["code"]) == (499, "client_closed")
    assert engine.num_cancelled == 1
    assert gateway.sample("laneway_request_failures_total", reason="cancelled") == 1
    assert gateway.sample("laneway_requests_in_flight") == 0


async def test_a_client_that_leaves_while_sending_is_no_server_error():
    gateway = Gateway()
    answer = await gateway.request("POST", "/v1/embeddings", b'{"model":', leaves_while_sending=True)
    assert (answer.status, answer.error["code"]) == (499, "client_closed")


async def test_a_request_that_is_itself_cancelled_leaves_nothing_running():
    """What a server does to requests that outlive its shutdown; they may be sent again elsewhere."""
    engine = FakeEngine(hold=asyncio.Event())
    gateway = Gateway(engine)
    pending = asyncio.create_task(gateway.embed("a"))
    await engine.started.wait()
    pending.cancel()
    answer = await pending
    assert (answer.status, answer.error["code"]) == (503, "shutting_down")
    assert engine.num_cancelled == 1
    assert gateway.sample("laneway_request_failures_total", reason="unavailable") == 1
    assert len(asyncio.all_tasks()) == 1


# Counting


async def test_what_was_embedded_is_counted_by_lane():
    gateway = Gateway()
    await gateway.embed(["a b", "c"])
    labels = {"model": "tiny", "modality": "text", "lane": "document"}
    assert gateway.sample("laneway_items_total", **labels) == 2
    assert gateway.sample("laneway_tokens_total", **labels) == 3
    assert gateway.sample("laneway_request_items_sum", model="tiny") == 2
    assert (
        gateway.sample("laneway_stage_duration_seconds_sum", model="tiny", lane="document", stage="queue")
        == 0.0015
    )


async def test_what_an_sdk_sends_again_is_counted():
    """Retry storms look like traffic unless somebody counts them."""
    gateway = Gateway()
    for count in ("0", "1", "2"):
        await gateway.embed("a", {"x-stainless-retry-count": count})
    assert gateway.sample("laneway_request_retries_total") == 2


def test_the_vocabulary_is_not_loaded_before_somebody_needs_it():
    gateway = Gateway()
    vocabulary = gateway.app.state["services"].cl100k
    assert isinstance(vocabulary, Cl100kVocabulary)
    assert repr(vocabulary) == "<Cl100kVocabulary not loaded>"


async def test_a_vector_that_is_not_finite_is_an_error_and_never_null():
    answer = await Gateway(FakeEngine(scale=float("nan"), info_=INFO)).embed("a")
    assert (answer.status, answer.error["code"]) == (500, "nonfinite_vector")
    assert answer.headers["x-should-retry"] == "false"
    assert b"null" not in answer.body.replace(b'"param":null', b"").replace(b'"code":null', b"")

"""What machines ask."""

import pytest

from app.metrics import Metrics
from batching import Lane, PassReport
from model.images import DecoderStatistics
from tests.app.fakes import FakeEngine, Gateway

LIVE = ["/health/live", "/v1/health/live"]
READY = ["/health", "/health/ready", "/v1/health/ready"]


@pytest.mark.parametrize("stage", ["loading", "ready", "failed"])
@pytest.mark.parametrize("path", LIVE)
async def test_the_process_is_alive_whatever_the_model_does(path: str, stage: str):
    """A liveness probe that waits for the model restarts it for ever."""
    answer = await Gateway(FakeEngine(stage=stage)).get(path)
    assert (answer.status, answer.json) == (200, {"status": "alive"})


@pytest.mark.parametrize("path", READY)
async def test_ready_means_that_requests_are_answered(path: str):
    gateway = Gateway(FakeEngine(stage="downloading 43%"))
    loading = await gateway.get(path)
    gateway.engine.stage = "ready"
    ready = await gateway.get(path)
    assert loading.status == 503
    assert loading.json == {
        "status": "unavailable",
        "stage": "downloading 43%",
        "error": {
            "message": "The model is not ready: downloading 43%.",
            "type": "server_error",
            "param": None,
            "code": "model_loading",
        },
    }
    assert (ready.status, ready.json) == (200, {"status": "ready", "stage": "ready"})


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
async def test_metrics_come_in_the_format_the_scraper_asks_for(path: str):
    gateway = Gateway()
    text = await gateway.get(path)
    openmetrics = await gateway.get(path, accept="application/openmetrics-text; version=1.0.0")
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b'laneway_model_ready{model="tiny"} 1.0' in text.body
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.body.endswith(b"# EOF\n")


async def test_metrics_work_before_the_model_is_there():
    """The minutes of the first download are the ones an operator watches."""
    answer = await Gateway(FakeEngine(stage="downloading 43%")).get("/metrics")
    assert answer.status == 200
    assert b'laneway_model_ready{model="tiny"} 0.0' in answer.body
    assert b"laneway_queue_items" not in answer.body


async def test_gauges_are_what_the_engine_says_at_the_scrape():
    gateway = Gateway()
    assert gateway.sample("laneway_queue_items", model="tiny", lane="query") == 0
    assert gateway.sample("laneway_worker_restarts_total", model="tiny", worker="0") == 2
    assert gateway.sample("laneway_worker_resident_memory_bytes", model="tiny", worker="0") == 1_000_000
    facts = {
        "model": "tiny",
        "source": "tiny",
        "fingerprint": "f" * 64,
        "dtype": "float32",
        "device": "cpu",
        "dimension": "8",
    }
    assert gateway.sample("laneway_model_info", **facts) == 1


def report(*, error: str | None = None) -> PassReport:
    return PassReport(
        slot=0,
        num_entries={Lane.QUERY: 1, Lane.DOCUMENT: 3},
        num_tokens={Lane.QUERY: 10, Lane.DOCUMENT: 90},
        run_s=0.02,
        device_s=0.015,
        predicted_s=0.014,
        oldest_wait_s=0.001,
        is_urgent=False,
        breaks_in=False,
        error=error,
    )


def test_passes_are_counted_by_size_and_device_time():
    gateway = Gateway()
    gateway.metrics.observe_pass(report())
    gateway.metrics.observe_pass(report(error="WorkerDiedError"))
    assert gateway.sample("laneway_pass_items_sum", model="tiny") == 4
    assert gateway.sample("laneway_pass_tokens_sum", model="tiny") == 100
    assert gateway.sample("laneway_pass_device_seconds_sum", model="tiny") == 0.015
    assert gateway.sample("laneway_pass_failures_total", model="tiny") == 1


def test_requests_are_counted_by_route_method_and_status():
    metrics = Metrics()
    metrics.observe_http("/v1/embeddings", "POST", 200, 0.004, failure=None, lane=None)
    sample = metrics.registry.get_sample_value
    labels = {"route": "/v1/embeddings", "method": "POST", "status": "200"}
    assert sample("laneway_http_requests_total", labels) == 1
    bucket = {"route": "/v1/embeddings", "status_class": "2xx", "le": "0.005"}
    assert sample("laneway_http_request_duration_seconds_bucket", bucket) == 1


def test_a_failure_is_counted_with_its_request():
    metrics = Metrics()
    metrics.observe_http("unmatched", "other", 431, 0.0, failure="too_long", lane=None)
    assert metrics.registry.get_sample_value("laneway_request_failures_total", {"reason": "too_long"}) == 1


@pytest.mark.parametrize(
    "path", ["/", "/stats", "/v1/models", "/v1/models/tiny", "/health", "/health/live", "/metrics"]
)
async def test_head_is_get_without_the_body(path: str):
    """Load balancers and uptime monitors ask with HEAD (RFC 9110, 9.3.2)."""
    gateway = Gateway()
    asked, told = await gateway.get(path), await gateway.request("HEAD", path)
    assert (told.status, told.body) == (200, b"")
    assert told.headers["content-type"] == asked.headers["content-type"]
    route = path.replace("tiny", "{model_id}")
    assert gateway.sample("laneway_http_requests_total", route=route, method="HEAD", status="200") == 1


async def test_a_readiness_probe_that_says_no_is_no_failed_request():
    gateway = Gateway(FakeEngine(stage="loading"))
    assert (await gateway.get("/health")).status == 503
    text = (await gateway.get("/metrics")).body
    assert b'laneway_request_failures_total{reason="unavailable"} 0.0' in text


def test_two_applications_in_one_process_count_for_themselves():
    """A global registry makes the second one an error, and tests depend on each other."""
    first, second = Metrics(), Metrics()
    first.observe_http("/", "GET", 200, 0.1, failure=None, lane=None)
    labels = {"route": "/", "method": "GET", "status": "200"}
    assert second.registry.get_sample_value("laneway_http_requests_total", labels) is None


async def test_no_series_says_when_it_was_created():
    """They double the text, and every dashboard would have to leave them out."""
    gateway = Gateway()
    await gateway.embed("a")
    assert b"_created" not in (await gateway.get("/metrics")).body


async def test_no_label_holds_what_a_client_made_up():
    """A million made-up model names would be a million series."""
    gateway = Gateway()
    for _ in range(2):
        await gateway.post("/v1/embeddings", {"model": "made-up", "input": "a"})
        await gateway.embed("a", **{"made-up": 1})
        await gateway.embed("a", {"X-Input-Type": "made-up"})
        await gateway.get("/made-up")
    assert b"made-up" not in (await gateway.get("/metrics")).body


# The OpenAPI document


async def test_the_document_describes_the_strict_request_and_the_envelope():
    answer = await Gateway().get("/schema/openapi.json")
    schemas = answer.json["components"]["schemas"]
    operation = answer.json["paths"]["/v1/embeddings"]["post"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    assert request == {"$ref": "#/components/schemas/CreateEmbeddingRequest"}
    assert {"$ref": "#/components/schemas/Item"} in schemas["CreateEmbeddingRequest"]["properties"]["input"][
        "oneOf"
    ]
    assert schemas["CreateEmbeddingRequest"]["properties"]["dimensions"]["type"] == ["integer", "null"]
    assert {one["type"] for one in schemas["Embedding"]["properties"]["embedding"]["oneOf"]} == {
        "array",
        "string",
    }
    assert set(schemas["Error"]["required"]) == {"message", "type", "param", "code"}
    assert set(operation["responses"]) == {"200", "400", "404", "408", "413", "415", "429", "500", "503"}


async def test_the_document_points_to_its_page_and_starts_from_a_request_that_works():
    """The page's first request is made of these examples."""
    gateway = Gateway()
    document = (await gateway.get("/schema/openapi.json")).json
    fields = document["components"]["schemas"]["CreateEmbeddingRequest"]["properties"]
    example = {name: fields[name]["examples"][0] for name in ("model", "input")}

    answer = await gateway.post("/v1/embeddings", example)

    assert document["externalDocs"]["url"] == "/docs"
    assert answer.status == 200
    assert len(answer.json["data"]) == 2


async def test_the_document_loads_nothing_from_elsewhere():
    """Machines without the internet read it, too."""
    body = (await Gateway().get("/schema")).body
    for host in (b"http://", b"https://", b"//cdn", b"jsdelivr", b"unpkg"):
        assert host not in body


async def test_what_became_of_images_is_told_at_every_scrape():
    decoder = DecoderStatistics(
        pids=(1, 2),
        num_decoding=1,
        num_waiting_queries=3,
        num_waiting_documents=4,
        num_decoded=50,
        num_refused=6,
        num_timeouts=7,
        num_crashes=8,
        num_abandoned=0,
        num_restarts=9,
    )
    text = (await Gateway(FakeEngine(decoder=decoder)).get("/metrics")).body.decode()
    for line in (
        'laneway_image_decodes_total{outcome="decoded"} 50.0',
        'laneway_image_decodes_total{outcome="timeout"} 7.0',
        'laneway_image_queue_items{lane="query"} 3.0',
        "laneway_image_decoder_restarts_total 9.0",
        'laneway_image_fetches_total{outcome="blocked"} 0.0',
        'laneway_held_image_bytes{lane="query"} 0.0',
        'laneway_image_waiting_requests{lane="query"} 0.0',
        'laneway_image_waiting_requests{lane="document"} 0.0',
        "laneway_image_fetches_running 0.0",
    ):
        assert f"\n{line}\n" in text
    assert "laneway_image_decodes_total" not in (await Gateway(FakeEngine()).get("/metrics")).body.decode()

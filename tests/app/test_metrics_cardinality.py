"""Whatever strangers send, there are only so many series: each costs memory here, and in whatever scrapes."""

import random
from collections.abc import Awaitable, Callable

from app.metrics import Metrics
from tests.app.fake_nvml import FakeNvml, gpus_of
from tests.app.fakes import Answer, Gateway

NUM_REQUESTS = 10_000
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

Send = Callable[[Gateway, str], Awaitable[Answer]]
"""Sends one kind of request; the text stands wherever a client of that kind can write what it likes."""

KINDS: tuple[Send, ...] = (
    lambda gateway, text: gateway.get(f"/{text}"),
    lambda gateway, text: gateway.get(f"/v1/{text}/embeddings"),
    lambda gateway, text: gateway.get(f"/v1/models/{text}"),
    lambda gateway, text: gateway.get(f"/docs/{text}?{text}={text}"),
    lambda gateway, text: gateway.request("POST", f"/{text}", text.encode()),
    lambda gateway, text: gateway.request("HEAD", f"/{text}"),
    lambda gateway, text: gateway.request("DELETE", "/v1/embeddings"),
    lambda gateway, text: gateway.request(text.upper(), "/v1/embeddings"),
    lambda gateway, text: gateway.request(text.upper(), f"/{text}"),
    lambda gateway, text: gateway.request("POST", "/v1/embeddings", text.encode()),
    lambda gateway, text: gateway.post("/v1/embeddings", {"model": text, "input": "a"}),
    lambda gateway, text: gateway.post("/v1/embeddings", b"{}", {"Content-Encoding": text}),
    lambda gateway, text: gateway.embed("a", {"Authorization": f"Bearer {text}"}),
    lambda gateway, text: gateway.embed("a", {"X-Request-Id": text, "User-Agent": text, "Host": text}),
    lambda gateway, text: gateway.embed("a", {"X-Priority": text}),
    lambda gateway, text: gateway.embed("a", {"X-Input-Type": text, "OpenAI-Organization": text}),
    lambda gateway, text: gateway.embed("a", user=text),
    lambda gateway, text: gateway.embed("a", **{f"param_{text}": text}),
    lambda gateway, text: gateway.embed("a", input_type=text),
    lambda gateway, text: gateway.embed("a", encoding_format=text),
    lambda gateway, text: gateway.embed(text, {"X-Priority": "query"}),
    lambda gateway, text: gateway.embed([text, "b"], {"X-Priority": "document"}),
    lambda gateway, text: gateway.embed([text, "b"], {"X-Priority": "batch", "x-stainless-retry-count": "1"}),
    lambda gateway, text: gateway.embed([{"image_url": f"https://{text}.example/{text}"}]),
    lambda gateway, text: gateway.embed([len(text), 10**9]),
    lambda gateway, text: gateway.post("/v2/embed", {"model": text, "texts": [text], "input_type": text}),
)


def series(metrics: Metrics) -> set[tuple[str, ...]]:
    """Name and labels of everything that is exported."""
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
        for metric in metrics.registry.collect()
        for sample in metric.samples
    }


async def test_ten_thousand_strangers_add_no_series_to_those_of_the_first():
    """Random paths, methods, models, users, keys, headers and bodies, through the application as it is served."""
    gateway = Gateway(metrics=Metrics(gpus=gpus_of(FakeNvml())[0]))
    for send in KINDS:
        await send(gateway, "first")
    before = series(gateway.metrics)
    rng = random.Random(0)
    statuses: set[int] = set()
    for _ in range(NUM_REQUESTS):
        text = "".join(rng.choices(LETTERS, k=rng.randint(6, 24)))
        statuses.add((await rng.choice(KINDS)(gateway, text)).status)
    assert series(gateway.metrics) == before
    assert statuses == {200, 400, 404, 405, 415}
    counted = sum(
        sample.value
        for metric in gateway.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "laneway_http_requests_total"
    )
    assert counted == NUM_REQUESTS + len(KINDS)

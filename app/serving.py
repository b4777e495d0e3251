"""One request's way through the engine: watched for its client, counted, named errors.

Law: nobody computes for a client that has gone. Litestar does not cancel a handler when its client leaves, so
the connection is watched here for as long as the engine works on the request.
"""

import asyncio
import hashlib
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any, TypeVar, cast

from litestar import Request
from litestar.types import Receive
from msgspec import Struct

from app.bodies import GatewayRequest, ignored_params, ignored_params_header
from app.engine import Embeddings
from app.errors import ClientGoneError, InputFailedError
from app.facts import FACTS, Computed, RequestFacts
from app.inputs import EmbeddingRequest
from app.media import embed_with_images
from app.preparation import InputRefusedError
from app.services import Services
from batching import EntryFailedError, Lane

T = TypeVar("T")


async def embed(request: Request[Any, Any, Any], services: Services, wanted: EmbeddingRequest) -> Embeddings:
    """Embed the inputs of a request, for as long as its client is there.

    Raises:
        ClientGoneError: The client closed the connection; what was still waiting is dropped.
        InputFailedError: One input was refused or failed; the error carries the client's name for it.
    """
    engine, metrics = services.engine, services.metrics
    tenant = tenant_of(request.headers)
    facts = RequestFacts(
        lane=wanted.lane,
        model=engine.served_name,
        num_items=len(wanted.inputs),
        encoding_format=wanted.encoding_format,
        began_s=monotonic(),
    )
    scope = cast("dict[str, Any]", request.scope)
    scope[FACTS] = facts
    work = embed_with_images(engine, services.intake, wanted, tenant=tenant)
    try:
        with metrics.requests_in_flight.track_inprogress():
            embeddings = await while_connected(request.receive, work)
    except (InputRefusedError, EntryFailedError) as failure:
        raise InputFailedError(wanted.params[failure.index], failure) from failure.__cause__
    scope[FACTS] = replace(facts, computed=computed_of(embeddings, ended_s=monotonic()))
    metrics.observe_embeddings(embeddings, lane=wanted.lane)
    return embeddings


def computed_of(embeddings: Embeddings, *, ended_s: float) -> Computed:
    """What is told of an answer beside its vectors."""
    return Computed(
        num_tokens=sum(embeddings.num_tokens),
        num_image_tokens=sum(embeddings.num_image_tokens),
        dimension=embeddings.rows.shape[1],
        prepare_s=embeddings.prepare_s,
        queue_s=embeddings.queue_s,
        worker_wait_s=embeddings.worker_wait_s,
        device_s=embeddings.compute_s,
        ended_s=ended_s,
    )


def tenant_of(headers: Mapping[str, str]) -> str:
    """Who sends a request, by the key that it comes with; "" for all who send none.

    A digest, so that no key lives on in a queue.
    """
    key = headers.get("authorization")
    return "" if key is None else hashlib.sha256(key.encode()).hexdigest()[:16]


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and cancel it if the client leaves first. The request's body must have been read.

    The work runs in the task of the request, and only its watcher in another: a task for the work as well
    would cost each query further turns of the event loop.

    Raises:
        ClientGoneError: The client left.
    """
    task = asyncio.current_task()
    assert task is not None, "a request is served in a task"
    watcher = asyncio.ensure_future(_cancel_when_left(receive, task))
    try:
        return await work
    except asyncio.CancelledError:
        has_left = watcher.done() and not watcher.cancelled()
        # At shutdown the server cancels, too, and that goes on up.
        if has_left and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        # From here on it cannot cancel any more: cancelled itself, it does not get past its `receive`.
        watcher.cancel()


async def _cancel_when_left(receive: Receive, task: "asyncio.Task[Any]") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def timing_headers(embeddings: Embeddings) -> dict[str, str]:
    """Where the time went, and how many inputs were cut."""
    headers = {
        "x-queue-time-ms": f"{embeddings.queue_s * 1000:.1f}",
        "x-compute-time-ms": f"{embeddings.compute_s * 1000:.1f}",
    }
    if num_truncated := sum(dropped > 0 for dropped in embeddings.num_dropped_tokens):
        headers["x-truncated-inputs"] = str(num_truncated)
    return headers


def ignored_params_headers(
    request: GatewayRequest, services: Services, body_type: type[Struct]
) -> dict[str, str]:
    """Name the parameters that nobody knows here, and count them."""
    ignored = ignored_params(request.outline, body_type)
    services.metrics.ignored_params.inc(len(ignored))
    return {"x-ignored-params": ignored_params_header(ignored)} if ignored else {}


def rate_limit_headers(services: Services, lane: Lane, *, waited_s: float) -> dict[str, str]:
    """How much room the request's lane has, in OpenAI's headers: its "requests" are inputs here.

    The reset is an estimate: what waits now will have gone when it has waited as long as the request at hand.
    """
    engine = services.engine
    load = engine.lane_load(lane)
    max_entries = engine.limits.max_waiting_entries[lane]
    reset = duration_text(waited_s if load.num_waiting else 0.0)
    return {
        "x-ratelimit-limit-requests": str(max_entries),
        "x-ratelimit-remaining-requests": str(max(max_entries - load.num_waiting, 0)),
        "x-ratelimit-reset-requests": reset,
        "x-ratelimit-limit-tokens": str(load.max_waiting_tokens),
        "x-ratelimit-remaining-tokens": str(max(load.max_waiting_tokens - load.num_waiting_tokens, 0)),
        "x-ratelimit-reset-tokens": reset,
    }


def duration_text(duration_s: float) -> str:
    """A duration as OpenAI writes it: ``12ms``, ``1.5s``, ``6m0s``."""
    if duration_s < 1:
        return f"{round(duration_s * 1000)}ms"
    if duration_s < 60:
        return f"{round(duration_s, 1):g}s"
    minutes, seconds = divmod(round(duration_s), 60)
    return f"{minutes}m{seconds}s"

"""An engine without a model, and a client without a socket."""

import asyncio
import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
from litestar import Litestar

from app.engine import (
    DRAINING,
    READY,
    RESTARTING,
    Embeddings,
    Engine,
    EngineNotReadyError,
    EngineState,
    EngineStatistics,
    modality_of,
)
from app.main import create_app
from app.metrics import Metrics
from app.observe import ObservedApp, Tracer
from app.settings import Settings
from batching import CostModel, Lane, LaneLoad, LaneStatistics, Limits, SchedulerStatistics
from model import EmbeddingInput, ImageInputs, ImageSpec, ImageTokens, ModelInfo, PromptTemplate
from model.images import DecoderStatistics
from model.images.spec import ResizeRule
from model.worker import WorkerStatistics

INFO = ModelInfo(
    source="tiny",
    family="sentence_transformers",
    architecture="BertModel",
    dimension=8,
    max_tokens=16,
    vocab_size=1000,
    num_parameters=1,
    dtype="float32",
    device="cpu",
    pooling="mean",
    is_normalized=True,
    is_packed=True,
    packing_note="",
    prompts={},
    default_prompt_name=None,
    include_prompt=True,
    matryoshka_dimensions=(4, 2),
    tokenizer_json="{}",
    fingerprint="f" * 64,
)

MULTIMODAL = replace(
    INFO,
    family="gme",
    architecture="Qwen2VLForConditionalGeneration",
    matryoshka_dimensions=(),
    template=PromptTemplate(
        pieces=("{instruction}", 0, "{images}{text}", 1),
        default_instruction="You are a helpful assistant.",
        instructs_documents=False,
    ),
    images=ImageInputs(
        spec=ImageSpec(patch_size=14, merge_size=2, resizes=(ResizeRule(min_tokens=4, max_tokens=64),)),
        tokens=ImageTokens(start=(2,), pad=3, end=(4,)),
        max_images=1,
        is_fused_with_text=True,
    ),
)
"""A model of texts and images whose prompt is a template, as GME's is."""

IDLE = LaneStatistics(
    num_waiting=0,
    num_waiting_tokens=0,
    oldest_wait_s=0.0,
    num_running=0,
    num_admitted=0,
    num_refused=0,
    num_done=0,
    num_failed=0,
    num_cancelled=0,
    num_expired=0,
    device_s=0.0,
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of ``embed``."""

    inputs: tuple[EmbeddingInput, ...]
    lane: Lane
    timeout_s: float | None


def vector_of(one: EmbeddingInput, dimension: int = 8) -> npt.NDArray[np.float32]:
    """A unit vector that depends on all that should change a vector, and on nothing else."""
    key = repr((one.text, one.token_ids, one.prompt_name, one.instruction))
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass(kw_only=True)
class FakeEngine:
    """Answers with deterministic vectors; a word is a token."""

    info_: ModelInfo = INFO
    stage: str = READY
    served_name: str = "tiny"
    aliases: tuple[str, ...] = ()
    failure: Exception | None = None
    """Set: calls raise it."""
    hold: asyncio.Event | None = None
    """Set: calls wait for it."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    num_cancelled: int = 0
    calls: list[Call] = field(default_factory=list)
    lanes: dict[Lane, LaneStatistics] = field(default_factory=lambda: dict.fromkeys(Lane, IDLE))
    scale: float = 1.0
    queue_s: float = 0.0015
    decoder: DecoderStatistics | None = None

    @property
    def state(self) -> EngineState:
        return EngineState(stage=self.stage, is_ready=self.stage == READY)

    @property
    def info(self) -> ModelInfo:
        if self.stage not in (READY, RESTARTING, DRAINING):
            raise EngineNotReadyError(self.stage)
        return self.info_

    def decoder_statistics(self) -> DecoderStatistics | None:
        return self.decoder

    @contextmanager
    def admitted(self) -> Generator[None]:
        if self.stage not in (READY, RESTARTING):
            raise EngineNotReadyError(self.stage)
        yield

    async def embed(
        self, inputs: Sequence[EmbeddingInput], *, lane: Lane, timeout_s: float | None, tenant: str = ""
    ) -> Embeddings:
        self.calls.append(Call(inputs=tuple(inputs), lane=lane, timeout_s=timeout_s))
        self.started.set()
        if self.failure is not None:
            raise self.failure
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
        lengths = [len(one.token_ids or (one.text or "").split()) for one in inputs]
        limits = [min(one.max_tokens or 10**9, self.info_.max_tokens) for one in inputs]
        image_tokens = [sum(image.num_tokens for image in one.images) for one in inputs]
        return Embeddings(
            rows=np.stack([vector_of(one, self.info_.dimension) for one in inputs]) * np.float32(self.scale),
            num_tokens=tuple(
                min(length, limit) + of_images
                for length, limit, of_images in zip(lengths, limits, image_tokens, strict=True)
            ),
            num_image_tokens=tuple(image_tokens),
            num_images=sum(len(one.images) for one in inputs),
            modalities=tuple(map(modality_of, inputs)),
            num_dropped_tokens=tuple(
                max(length - limit, 0) for length, limit in zip(lengths, limits, strict=True)
            ),
            queue_s=self.queue_s,
            compute_s=0.004,
            worker_wait_s=0.0007,
        )

    @property
    def limits(self) -> Limits:
        return Limits(max_pass_s=0.05, max_document_pass_s=0.15, fill_s=0.02, max_pass_tokens=512)

    def lane_load(self, lane: Lane) -> LaneLoad:
        state = self.lanes[lane]
        return LaneLoad(
            num_waiting=state.num_waiting,
            num_waiting_tokens=state.num_waiting_tokens,
            waiting_s=state.waiting_s,
            max_waiting_tokens=1_000_000,
        )

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            scheduler=SchedulerStatistics(
                lanes=self.lanes, num_running_passes=0, num_passes=3, num_failed_passes=1
            ),
            workers=(
                WorkerStatistics(is_ready=True, pid=7, num_restarts=2, num_passes=3, rss_bytes=1_000_000),
            ),
            num_passes=3,
            num_items=12,
            num_tokens=90,
            device_s=0.5,
            load_s=12.5,
            cost=CostModel().figures(),
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> Any:
        """The error object; asserts that the body is the envelope, whole and nothing else."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]


class Gateway:
    """The application around a fake engine, called as a server would call it."""

    def __init__(
        self,
        engine: FakeEngine | None = None,
        settings: Settings | None = None,
        *,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.engine = engine or FakeEngine()
        self.tracer = tracer
        self.metrics = metrics or Metrics()
        self.settings = settings or Settings()
        self.app: Litestar = create_app(cast("Engine", self.engine), self.settings, self.metrics)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | Sequence[bytes] = b"",
        *,
        headers: Mapping[str, str] | None = None,
        leaves: asyncio.Event | None = None,
        leaves_while_sending: bool = False,
    ) -> Answer:
        """Send one request; the client stays until it is answered, or until ``leaves`` is set."""
        chunks = [body] if isinstance(body, bytes) else list(body)
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
            for number, chunk in enumerate(chunks, start=1)
        ]
        if leaves_while_sending:
            messages = [{**messages[0], "more_body": True}, {"type": "http.disconnect"}]
        sent: list[dict[str, Any]] = []
        answered = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await (leaves or answered).wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                answered.set()

        await ObservedApp(cast("Any", self.app), self.metrics, tracer=self.tracer)(
            http_scope(method, path, headers or {}), receive, send
        )
        return Answer(
            status=sent[0]["status"],
            headers={name.decode().lower(): value.decode() for name, value in sent[0]["headers"]},
            body=b"".join(message.get("body", b"") for message in sent[1:]),
        )

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.request("GET", path, headers=headers)

    async def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Answer:
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return await self.request("POST", path, raw, headers=headers)

    async def embed(
        self, given: object, headers: Mapping[str, str] | None = None, **fields: object
    ) -> Answer:
        return await self.post("/v1/embeddings", {"model": "tiny", "input": given, **fields}, headers)

    def sample(self, name: str, /, **labels: str) -> float | None:
        """The value of a metric now."""
        return self.metrics.registry.get_sample_value(name, labels)


def http_scope(method: str, target: str, headers: Mapping[str, str]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }


def with_settings(**groups: Mapping[str, Any]) -> Settings:
    """Default settings with a few fields changed: ``with_settings(model={"token_ids": TokenIds.REJECT})``."""
    settings = Settings()
    return replace(
        settings, **{name: replace(getattr(settings, name), **values) for name, values in groups.items()}
    )

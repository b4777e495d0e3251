"""One served model from start to stop, on workers that compute nothing."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from app import engine as engine_module
from app.engine import (
    Engine,
    EngineNotReadyError,
    EngineState,
    image_decoder,
    ticket_of,
)
from app.launch import check_settings
from app.preparation import InputRefusedError, RequestTooLargeError
from app.prompts import check_default_input_type
from app.settings import Settings
from batching import (
    DeadlineError,
    EntryFailedError,
    Lane,
    PassReport,
    QueueFullError,
    ShuttingDownError,
    SubmissionTooLargeError,
)
from model import (
    CheckpointError,
    DecodedImage,
    EmbeddingInput,
    Features,
    ImageInputs,
    ImageSpec,
    ImageTokens,
    InputTooLongError,
    ModelInfo,
    NonFiniteRowError,
    PassOutOfMemoryError,
    PassResult,
    Preparer,
    PromptTemplate,
    TokenIdError,
    Truncation,
    WorkerDiedError,
)
from model.images import Alpha, DecoderStatistics, ImageLimits, Orientation, ResizeRule
from model.worker import ImageOptions, LoadOptions, OnStage, Quantization, Rope, WorkerStatistics
from tests.app.fakes import INFO, with_settings


def tokenizer_of_words() -> str:
    """A word is a token: its place in the vocabulary tells which."""
    words = ["[UNK]", "one", "two", "three", "bad", "word"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()


WORDS = replace(INFO, tokenizer_json=tokenizer_of_words(), vocab_size=6, dimension=2)
BAD = 4
"""The token of which a row becomes NaN."""


@dataclass(eq=False)
class FakeWorker:
    """Rows are ``[first token, number of tokens]``."""

    info: ModelInfo = WORDS
    stages: Sequence[str] = ()
    failures: list[Exception] = field(default_factory=list)
    """Raised by the next passes, one each."""
    is_alive: bool = True
    device_s: float = 0.001
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: passes wait for it."""
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    passes: list[list[int]] = field(default_factory=list)
    """Tokens of each input of each pass."""
    timeouts_s: list[float | None] = field(default_factory=list)
    """What each pass was given."""
    flags: list[tuple[bool, bool]] = field(default_factory=list)
    """Whether each pass was urgent, and whether it might interrupt."""
    num_stops: int = 0
    options: LoadOptions | None = None

    def __post_init__(self) -> None:
        self.open.set()
        self.ready.set()

    async def start(self, on_stage: OnStage) -> ModelInfo:
        for stage in self.stages:
            on_stage(stage)
        return self.info

    @property
    def is_ready(self) -> bool:
        return self.ready.is_set()

    async def wait_ready(self) -> None:
        await self.ready.wait()

    can_interrupt = False

    async def run(
        self,
        features: Sequence[Features],
        *,
        timeout_s: float | None = None,
        is_urgent: bool = False,
        may_interrupt: bool = False,
    ) -> PassResult:
        self.flags.append((is_urgent, may_interrupt))
        self.timeouts_s.append(timeout_s)
        self.passes.append([one.num_tokens for one in features])
        self.has_begun.set()
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        rows = np.array([[one.token_ids[0], one.num_tokens] for one in features], dtype=np.float32)
        bad = tuple(index for index, one in enumerate(features) if one.token_ids[0] == BAD)
        return PassResult(rows=rows, device_s=self.device_s, nonfinite_rows=bad)

    async def stop(self) -> None:
        self.num_stops += 1

    def statistics(self) -> WorkerStatistics:
        return WorkerStatistics(
            is_ready=self.is_alive, pid=1, num_restarts=0, num_passes=len(self.passes), rss_bytes=None
        )

    def forget_calibration(self) -> None:
        self.passes.clear()
        self.has_begun.clear()


PIXELS = ImageInputs(
    spec=ImageSpec(patch_size=14, merge_size=2, resizes=(ResizeRule(min_tokens=1, max_tokens=16),)),
    tokens=ImageTokens(start=(1,), pad=5, end=(2,)),
    max_images=1,
    is_fused_with_text=True,
)
PICTURES = replace(
    WORDS,
    max_tokens=32,
    images=PIXELS,
    template=PromptTemplate(pieces=(3, "{images}{text}"), default_instruction="", instructs_documents=False),
)
"""A model that reads images, too: each row begins with token 3."""


class FakeDecoder:
    """Every file is a square of two by two tokens in the colour of its first byte."""

    def __init__(self) -> None:
        self.queries: list[bool] = []
        self.groups: list[Hashable] = []
        self.num_starts = self.num_closes = 0

    async def start(self) -> None:
        self.num_starts += 1

    async def decode(self, data: bytes, *, is_query: bool, group: Hashable = None) -> DecodedImage:
        self.queries.append(is_query)
        self.groups.append(group)
        return DecodedImage(pixels=np.full((56, 56, 3), data[0], dtype=np.uint8), num_tokens=4)

    async def close(self) -> None:
        self.num_closes += 1

    def statistics(self) -> DecoderStatistics:
        return DecoderStatistics(
            pids=(1,),
            num_decoding=0,
            num_waiting_queries=0,
            num_waiting_documents=0,
            num_decoded=len(self.queries),
            num_refused=0,
            num_timeouts=0,
            num_crashes=0,
            num_abandoned=0,
            num_restarts=0,
        )


def no_decoder(_spec: ImageSpec) -> FakeDecoder:
    raise AssertionError("a model that reads texts alone needs no decoder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is found as a checkpoint; nothing of it is read."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    return tmp_path / "mine"


def build_engine(
    folder: Path, *workers: FakeWorker, settings: Settings | None = None, **options: Any
) -> Engine:
    settings = settings or Settings()
    model = replace(settings.model, model=str(folder), workers=len(workers), device="cpu")

    def open_worker(options: LoadOptions, slot: int) -> FakeWorker:
        workers[slot].options = options
        return workers[slot]

    options.setdefault("open_decoder", no_decoder)
    return Engine(replace(settings, model=model), open_worker=open_worker, **options)


@asynccontextmanager
async def serving(folder: Path, *workers: FakeWorker, **options: Any) -> AsyncGenerator[Engine]:
    """A started engine, stopped at the end; what calibration did is forgotten."""
    engine = build_engine(folder, *workers, **options)
    await engine.start()
    for worker in workers:
        worker.forget_calibration()
    try:
        yield engine
    finally:
        await engine.stop(drain_s=0)


def texts(*given: str, **options: Any) -> list[EmbeddingInput]:
    return [EmbeddingInput(text=text, **options) for text in given]


# Answers ---------------------------------------------------------------------------------------------------


async def test_rows_come_back_in_input_order_with_what_they_cost(folder: Path):
    async with serving(folder, FakeWorker()) as engine:
        answer = await engine.embed(texts("two one", "one", "three " * 20), lane=Lane.QUERY, timeout_s=None)
    assert answer.rows.tolist() == [[2, 2], [1, 1], [3, 16]]
    assert (answer.num_tokens, answer.num_dropped_tokens) == ((2, 1, 16), (0, 0, 4))
    assert answer.compute_s == 0.001


async def test_an_input_that_cannot_be_embedded_is_named_by_its_place(folder: Path):
    """Also in the second chunk: the place is the one in the request."""
    async with serving(folder, worker := FakeWorker()) as engine:
        inputs = [*texts(*["one"] * 70), EmbeddingInput(token_ids=(6,))]
        with pytest.raises(InputRefusedError, match="token id 6 is not in the vocabulary of 6 ids") as caught:
            await engine.embed(inputs, lane=Lane.DOCUMENT, timeout_s=None)
        long = texts("one", "two " * 17, truncation=Truncation.NONE)
        with pytest.raises(InputRefusedError) as too_long:
            await engine.embed(long, lane=Lane.QUERY, timeout_s=None)
    assert (caught.value.index, type(caught.value.__cause__)) == (70, TokenIdError)
    assert (too_long.value.index, type(too_long.value.__cause__)) == (1, InputTooLongError)
    assert worker.passes == []


async def test_a_row_that_is_not_finite_is_its_inputs_error(folder: Path):
    async with serving(folder, FakeWorker()) as engine:
        with pytest.raises(EntryFailedError) as caught:
            await engine.embed(texts("one", "bad"), lane=Lane.QUERY, timeout_s=None)
        neighbour = await engine.embed(texts("one"), lane=Lane.QUERY, timeout_s=None)
    assert (caught.value.index, type(caught.value.__cause__)) == (1, NonFiniteRowError)
    assert neighbour.rows.tolist() == [[1, 1]]


async def test_what_passes_did_is_added_up_and_told(folder: Path):
    told: list[PassReport] = []
    async with serving(folder, FakeWorker(), on_pass=told.append) as engine:
        await engine.embed(texts("one", "two one"), lane=Lane.QUERY, timeout_s=None)
        await asyncio.sleep(0)  # Whoever waits for rows comes first.
        statistics = engine.statistics()
    assert (statistics.num_passes, statistics.num_items, statistics.num_tokens) == (1, 2, 3)
    assert statistics.mean_pass_items == 2
    assert [report.num_tokens for report in told] == [{Lane.QUERY: 3}]


# Preparing -------------------------------------------------------------------------------------------------


class RecordingPreparer(Preparer):
    """Keeps which thread prepared how many inputs."""

    calls: list[tuple[str, int]] = []  # noqa: RUF012 - one list for all of them, emptied by the fixture

    def prepare(self, inputs: Sequence[EmbeddingInput]) -> list[Any]:
        self.calls.append((threading.current_thread().name.rpartition("_")[0], len(inputs)))
        return list(super().prepare(inputs))


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(RecordingPreparer, "calls", calls)
    monkeypatch.setattr(engine_module, "Preparer", RecordingPreparer)
    return calls


@pytest.mark.parametrize(
    ("lane", "inputs", "calls"),
    [
        (Lane.QUERY, texts("one"), [("", 1)]),
        (Lane.DOCUMENT, texts("one"), [("", 1)]),
        (Lane.QUERY, texts("word " * 1_000), [("tokenise-query", 1)]),
        (Lane.DOCUMENT, texts("word " * 1_000), [("tokenise-document", 1)]),
        (Lane.QUERY, texts("word " * 5_000), [("tokenise-document", 1)]),
        (Lane.QUERY, texts("one", instruction="word " * 5_000), [("tokenise-document", 1)]),
        (Lane.QUERY, texts(*["one"] * 400), [("tokenise-query", 64)] * 6 + [("tokenise-query", 16)]),
    ],
    ids=["short", "short document", "query", "document", "long query", "long instruction", "many queries"],
)
async def test_who_tokenises(
    lane: Lane,
    inputs: list[EmbeddingInput],
    calls: list[tuple[str, int]],
    folder: Path,
    prepared: list[tuple[str, int]],
):
    """A long request never has the queries' thread, whatever lane it claims."""
    async with serving(folder, FakeWorker()) as engine:
        await engine.embed(inputs, lane=lane, timeout_s=None)
    assert prepared == calls


async def test_a_request_of_too_many_tokens_is_refused_when_they_are_too_many(
    folder: Path, prepared: list[tuple[str, int]]
):
    """A body of 16 MB kept the documents' tokeniser busy for 71 s before it was refused."""
    settings = with_settings(limits={"max_request_tokens": 1_000})
    inputs = texts(*["word " * 10] * 2_000)
    async with serving(folder, worker := FakeWorker(), settings=settings) as engine:
        with pytest.raises(
            RequestTooLargeError, match=r"^Requested at least 1280 tokens, max 1000 tokens per request\.$"
        ) as caught:
            await engine.embed(inputs, lane=Lane.DOCUMENT, timeout_s=None)
        assert len(prepared) == 2
        with pytest.raises(RequestTooLargeError, match=r"^Requested 1001 tokens, max 1000 tokens"):
            await engine.embed(texts("word " * 1_001), lane=Lane.DOCUMENT, timeout_s=None)
    assert (caught.value.num_tokens, caught.value.max_tokens) == (1_280, 1_000)
    assert worker.passes == []


async def test_a_full_lane_is_found_before_anything_is_tokenised(
    folder: Path, prepared: list[tuple[str, int]]
):
    """Clients that come back at once used to cost the tokeniser as much as if they had been let in."""
    settings = with_settings(batching={"max_document_queue": 4})
    async with serving(folder, worker := FakeWorker(), settings=settings) as engine:
        worker.open.clear()
        lane = {"lane": Lane.DOCUMENT, "timeout_s": None}
        running = asyncio.create_task(engine.embed(texts("one"), **lane))
        await worker.has_begun.wait()
        waiting = asyncio.create_task(engine.embed(texts("one", "two", "one"), **lane))
        await asyncio.wait([waiting], timeout=0)
        prepared.clear()
        with pytest.raises(QueueFullError, match="3 entries are waiting, 4 are allowed") as early:
            await engine.embed(texts("one", "two"), **lane)
        with pytest.raises(SubmissionTooLargeError, match="brings 5 entries"):
            await engine.embed(texts(*["one"] * 5), **lane)
        assert prepared == []
        assert 0 < early.value.retry_after_s < 1
        assert engine.statistics().scheduler.lanes[Lane.DOCUMENT].num_refused == 7
        worker.open.set()
        await asyncio.gather(running, waiting)


async def test_passes_shrink_where_there_is_no_memory_for_them(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    async with serving(folder, worker := FakeWorker()) as engine:
        before = engine.limits.max_pass_tokens
        worker.failures.append(PassOutOfMemoryError("no memory for the pass"))
        answer = await engine.embed(texts("one", "two", "three", "one"), lane=Lane.QUERY, timeout_s=None)
        assert answer.rows.tolist() == [[1, 1], [2, 1], [3, 1], [1, 1]]
        await engine.embed(texts("one", "two", "three"), lane=Lane.QUERY, timeout_s=None)
        assert (before, engine.limits.max_pass_tokens) == (4_096, 2)
    assert worker.passes == [[1] * 4, [1] * 2, [1] * 2, [1] * 2, [1]]
    assert "a pass of 4 tokens found no memory; passes are kept to 2 tokens from now on" in caplog.text


async def test_passes_begin_no_larger_than_calibration_found_memory_for(folder: Path):
    class SmallWorker(FakeWorker):
        async def run(self, features: Sequence[Features], **options: Any) -> PassResult:
            if sum(one.num_tokens for one in features) > 100:
                raise PassOutOfMemoryError("no memory for the pass")
            return await super().run(features, **options)

    async with serving(folder, worker := SmallWorker()) as engine:
        assert engine.limits.max_pass_tokens == 64
        await engine.embed(texts(*["one"] * 200), lane=Lane.DOCUMENT, timeout_s=None)
    assert max(map(sum, worker.passes)) == 64


async def test_the_deadline_counts_from_the_call_and_not_from_the_queue(folder: Path, monkeypatch):
    now_s = 0.0

    class SlowPreparer(Preparer):
        def prepare(self, inputs: Sequence[EmbeddingInput]) -> list[Any]:
            nonlocal now_s
            now_s += 3
            return list(super().prepare(inputs))

    monkeypatch.setattr(engine_module, "Preparer", SlowPreparer)
    async with serving(folder, worker := FakeWorker(), clock=lambda: now_s) as engine:
        with pytest.raises(DeadlineError):
            await engine.embed(texts("one"), lane=Lane.QUERY, timeout_s=2.9)
        assert worker.passes == []
        await engine.embed(texts("one"), lane=Lane.QUERY, timeout_s=3.1)


def test_a_request_that_comes_again_is_known_by_whose_it_is_and_what_it_asks():
    """No client says that it was refused before; all send the same again."""
    ticket = ticket_of(texts("one", "two"), tenant="a")
    assert ticket == ticket_of(texts("one", "two"), tenant="a")
    others = [
        ticket_of(texts("one", "two"), tenant="b"),
        ticket_of(texts("two", "one"), tenant="a"),
        ticket_of(texts("one"), tenant="a"),
        ticket_of(texts("one", "two", instruction="find"), tenant="a"),
    ]
    assert ticket not in others


async def test_a_refused_request_finds_the_room_that_was_kept_for_it(folder: Path):
    """Others come in the meantime, and would take what was made free."""
    now_s = 0.0
    settings = with_settings(batching={"max_query_queue": 2})
    async with serving(folder, worker := FakeWorker(), settings=settings, clock=lambda: now_s) as engine:
        worker.open.clear()

        def embed(text: str) -> asyncio.Task[Any]:
            return asyncio.create_task(engine.embed(texts(text), lane=Lane.QUERY, timeout_s=None))

        running = embed("one")
        await worker.has_begun.wait()
        waiting, leaving = embed("one"), embed("two")
        await asyncio.wait([waiting, leaving], timeout=0)
        with pytest.raises(QueueFullError) as refused:
            await embed("one two")
        leaving.cancel()
        await asyncio.wait([leaving])
        now_s = refused.value.retry_after_s
        with pytest.raises(QueueFullError, match="1 are kept for requests that come back, 2 are allowed"):
            await embed("two one")
        back = embed("one two")
        await asyncio.wait([back], timeout=0)
        worker.open.set()
        await asyncio.gather(running, waiting, back)


# State -----------------------------------------------------------------------------------------------------


async def test_an_engine_tells_what_it_is_doing(folder: Path):
    told: list[str] = []
    engine = build_engine(folder, FakeWorker(stages=("loading weights 50%",)), on_stage=told.append)
    assert engine.state == EngineState(stage="starting", is_ready=False)
    assert repr(engine) == f"<Engine {folder}: starting, 0 workers>"
    with pytest.raises(EngineNotReadyError, match="the model is not ready: starting"):
        await engine.embed(texts("one"), lane=Lane.QUERY, timeout_s=None)
    await engine.start()
    assert engine.state == EngineState(stage="ready", is_ready=True)
    await engine.stop(drain_s=0)
    assert engine.state == EngineState(stage="draining", is_ready=False)
    assert told == [
        "looking for the model",
        "starting the workers",
        "loading weights 50%",
        "measuring pass times",
        "ready",
        "draining",
    ]


async def test_without_a_living_worker_an_engine_is_restarting_and_requests_wait(folder: Path):
    """Ready would send it more of them; refused, they would be lost to a restart that takes seconds."""
    async with serving(folder, worker := FakeWorker()) as engine:
        worker.is_alive = False
        worker.ready.clear()
        assert engine.state == EngineState(stage="restarting", is_ready=False)
        waiting = asyncio.create_task(engine.embed(texts("two"), lane=Lane.QUERY, timeout_s=None))
        await asyncio.wait([waiting], timeout=0)
        assert not waiting.done()
        worker.is_alive = True
        worker.ready.set()
        assert (await waiting).rows.tolist() == [[2, 1]]
        assert engine.state.is_ready


async def test_one_living_worker_is_enough_to_be_ready(folder: Path):
    async with serving(folder, FakeWorker(), other := FakeWorker()) as engine:
        other.is_alive = False
        assert engine.state.is_ready


async def test_a_pass_that_dies_with_its_worker_is_run_again(folder: Path):
    async with serving(folder, worker := FakeWorker()) as engine:
        worker.failures.append(WorkerDiedError("killed by signal 9"))
        answer = await engine.embed(texts("two"), lane=Lane.QUERY, timeout_s=None)
    assert answer.rows.tolist() == [[2, 1]]
    assert worker.passes == [[1], [1]]


async def test_a_draining_engine_finishes_and_takes_nothing_new(folder: Path):
    async with serving(folder, worker := FakeWorker()) as engine:
        worker.open.clear()
        in_flight = asyncio.create_task(engine.embed(texts("two"), lane=Lane.QUERY, timeout_s=None))
        await worker.has_begun.wait()
        engine.drain()
        with pytest.raises(EngineNotReadyError, match="the model is not ready: draining"), engine.admitted():
            pass
        worker.open.set()
        await engine.stop(drain_s=10)
        assert (await in_flight).rows.tolist() == [[2, 1]]
    assert worker.num_stops >= 1


@pytest.mark.parametrize("drain_s", [10, 0])
async def test_what_was_admitted_is_finished_as_far_as_there_is_time(folder: Path, drain_s: float):
    """Its images may still be on their way when the server is told to stop: nothing of it is queued yet."""
    decoder = FakeDecoder()
    async with serving(folder, FakeWorker(info=PICTURES), open_decoder=lambda _spec: decoder) as engine:
        may_go_on = asyncio.Event()

        async def request() -> object:
            with engine.admitted():
                await may_go_on.wait()
                image = await engine.decode_image(b"x", lane=Lane.QUERY)
                return await engine.embed([EmbeddingInput(images=(image,))], lane=Lane.QUERY, timeout_s=None)

        in_flight = asyncio.create_task(request())
        await asyncio.sleep(0)
        with engine.admitted():
            pass  # another one, which has been answered
        engine.drain()
        stopping = asyncio.create_task(engine.stop(drain_s=drain_s))
        if drain_s:
            await asyncio.sleep(0)
            assert not decoder.num_closes
            may_go_on.set()
            assert await in_flight
            await stopping
        else:
            await stopping
            may_go_on.set()
            with pytest.raises(ShuttingDownError):
                await in_flight
        assert decoder.num_closes


async def test_a_stop_without_time_gives_up_what_is_in_flight(folder: Path):
    async with serving(folder, worker := FakeWorker()) as engine:
        worker.open.clear()
        in_flight = asyncio.create_task(engine.embed(texts("two"), lane=Lane.QUERY, timeout_s=None))
        await worker.has_begun.wait()
        await engine.stop(drain_s=0)
        with pytest.raises(ShuttingDownError):
            await in_flight


async def test_the_name_is_there_before_the_model_and_stays(folder: Path):
    """It is a label of the metrics: a series that changed it would look like another model."""
    engine = build_engine(folder, FakeWorker())
    before = (engine.served_name, engine.aliases)
    await engine.start()
    assert (engine.served_name, engine.aliases) == before == ("mine", ())
    await engine.stop(drain_s=0)


@pytest.mark.parametrize(
    ("model", "served_name", "name", "aliases"),
    [
        ("minilm", None, "all-MiniLM-L6-v2", ("minilm", "sentence-transformers/all-MiniLM-L6-v2")),
        ("minilm", "minilm", "minilm", ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")),
        ("acme/model", None, "acme/model", ("model",)),
        ("modelscope:acme/model", "mine", "mine", ("acme/model", "model")),
    ],
)
def test_a_served_name_takes_the_place_of_the_models_own(
    model: str, served_name: str | None, name: str, aliases: tuple[str, ...]
):
    settings = with_settings(model={"model": model, "served_name": served_name})
    engine = Engine(settings, open_worker=lambda _options, _slot: FakeWorker(), open_decoder=no_decoder)
    assert (engine.served_name, engine.aliases) == (name, aliases)


# Start -----------------------------------------------------------------------------------------------------


async def test_workers_that_loaded_different_files_do_not_serve(folder: Path):
    """Half of the vectors would be of another model."""
    workers = FakeWorker(), FakeWorker(info=replace(WORDS, fingerprint="0" * 64))
    engine = build_engine(folder, *workers)
    with pytest.raises(CheckpointError, match=f"the workers loaded different files from {folder}"):
        await engine.start()
    assert engine.state == EngineState(stage="failed", is_ready=False)
    assert [worker.num_stops for worker in workers] == [1, 1]


async def test_a_model_that_is_not_accepted_does_not_serve(folder: Path):
    """`laneway serve --default-input-type nonsense` must fail at start, not at every request."""

    def accept(info: ModelInfo) -> None:
        check_default_input_type("nonsense", info)

    engine = build_engine(folder, FakeWorker(), accept=accept)
    with pytest.raises(
        CheckpointError, match="default_input_type: 'nonsense' is not an input type of this model"
    ):
        await engine.start()
    assert engine.state.stage == "failed"


def test_settings_that_could_never_work_are_refused_at_start(tmp_path: Path):
    check_settings(with_settings(model={"default_input_type": "query"}), WORDS)
    with pytest.raises(CheckpointError, match="default_input_type: 'nonsense' is not an input type"):
        check_settings(with_settings(model={"default_input_type": "nonsense"}), WORDS)
    with pytest.raises(CheckpointError, match=f"cl100k_path: there is no file {tmp_path}/none"):
        check_settings(with_settings(model={"cl100k_path": f"{tmp_path}/none"}), WORDS)
    tight = with_settings(
        media={"max_held_image_bytes": 1_000_000, "max_images": 2, "max_image_bytes": 500_000}
    )
    check_settings(tight, WORDS)
    check_settings(with_settings(), PICTURES)
    with pytest.raises(
        CheckpointError, match=r"max_held_image_bytes is 1000000, but 2 images .* 1075264 bytes"
    ):
        check_settings(tight, PICTURES)


async def test_more_tokens_than_the_model_reads_are_warned_of(folder: Path, caplog: pytest.LogCaptureFixture):
    async with serving(folder, FakeWorker(), settings=with_settings(model={"max_tokens": 99_999})):
        pass
    assert f"max_tokens is 99999, but the model reads no more than {WORDS.max_tokens}" in caplog.text


async def test_the_settings_reach_the_worker(folder: Path):
    settings = with_settings(model={"max_tokens": 100, "dimensions": (4, 2)})
    async with serving(folder, worker := FakeWorker(), settings=settings):
        assert worker.options is not None
    assert (worker.options.folder, worker.options.source) == (str(folder), "mine")
    assert (worker.options.device, worker.options.dtype) == ("cpu", "auto")
    assert (worker.options.max_tokens, worker.options.matryoshka_dimensions) == (100, (4, 2))


async def test_the_settings_of_images_reach_worker_and_decoder(folder: Path, monkeypatch):
    """What changes vectors is told to the worker, which stamps it into the fingerprint."""
    settings = with_settings(
        model={"family": "gme", "rope": "mrope", "quantize": "int8"},
        images={
            "min_image_tokens": 4,
            "max_image_tokens": 64,
            "image_orientation": "stored",
            "image_alpha": "drop",
            "max_image_pixels": 1000,
            "decode_timeout_s": 3.0,
            "decode_workers": 5,
        },
    )
    async with serving(folder, worker := FakeWorker(), settings=settings):
        assert worker.options is not None
    options = worker.options
    assert (options.family, options.rope, options.quantization) == ("gme", Rope.MROPE, Quantization.INT8)
    assert options.images == ImageOptions(
        min_tokens=4, max_tokens=64, orientation=Orientation.STORED, alpha=Alpha.DROP
    )
    made: dict[str, Any] = {}
    monkeypatch.setattr(
        engine_module, "ImageDecoder", lambda *args, **options: made.update(args=args, **options)
    )
    image_decoder(settings.images, PIXELS.spec)
    assert made["args"] == (
        PIXELS.spec,
        ImageLimits(max_pixels=1000, decode_timeout_s=3.0),
        Orientation.STORED,
        Alpha.DROP,
    )
    assert made["num_processes"] == 5


# Images ----------------------------------------------------------------------------------------------------


async def test_an_image_goes_through_the_decoder_into_its_pass(folder: Path):
    decoder, worker = FakeDecoder(), FakeWorker(info=PICTURES)
    async with serving(folder, worker, open_decoder=lambda _spec: decoder) as engine:
        image = await engine.decode_image(b"x", lane=Lane.QUERY, group="its request")
        answer = await engine.embed(
            [
                EmbeddingInput(images=(image,)),
                EmbeddingInput(text="one two", images=(image,)),
                EmbeddingInput(text="one"),
            ],
            lane=Lane.DOCUMENT,
            timeout_s=None,
        )
    assert (decoder.queries, decoder.groups) == ([True], ["its request"])
    assert engine.decoder_statistics() == decoder.statistics()
    assert answer.num_tokens == (7, 9, 2)
    assert answer.num_image_tokens == (4, 4, 0)
    assert answer.num_images == 2
    assert answer.modalities == ("image", "text_image", "text")
    assert (decoder.num_starts, decoder.num_closes) == (1, 1)


async def test_images_have_a_price_of_their_own(folder: Path):
    """A pass with images is given the time that images take, or its worker would be taken to hang."""

    class SlowEyes(FakeWorker):
        async def run(self, features: Sequence[Features], **options: Any) -> PassResult:
            result = await super().run(features, **options)
            num_image_tokens = sum(one.num_image_tokens for one in features)
            return replace(result, device_s=0.001 + 0.1 * num_image_tokens)

    worker = SlowEyes(info=PICTURES)
    async with serving(folder, worker, open_decoder=lambda _spec: FakeDecoder()) as engine:
        image = await engine.decode_image(b"x", lane=Lane.DOCUMENT)
        for one in (EmbeddingInput(images=(image,)), EmbeddingInput(text="one")):
            await engine.embed([one], lane=Lane.DOCUMENT, timeout_s=None)
    of_image_s, of_text_s = worker.timeouts_s[-2:]
    assert of_image_s == pytest.approx(50 * 0.4, rel=0.1)
    assert of_text_s == 10.0


async def test_no_request_is_admitted_before_the_model_is_ready_or_after_its_end(folder: Path):
    engine = build_engine(folder, FakeWorker(info=PICTURES), open_decoder=lambda _spec: FakeDecoder())
    with pytest.raises(EngineNotReadyError):
        await engine.decode_image(b"x", lane=Lane.QUERY)
    with pytest.raises(EngineNotReadyError, match="starting"), engine.admitted():
        pass
    await engine.start()
    with engine.admitted():
        engine.drain()
    with pytest.raises(EngineNotReadyError, match="draining"), engine.admitted():
        pass
    await engine.stop(drain_s=0)


async def test_a_start_that_is_cancelled_does_not_wait_for_a_download(folder: Path, monkeypatch):
    """A socket that hangs cannot be interrupted; the thread that waits for it is left behind."""
    loop = asyncio.get_running_loop()
    has_begun, may_end = asyncio.Event(), threading.Event()

    def fetch(*_args: object, **_options: object) -> None:
        loop.call_soon_threadsafe(has_begun.set)
        may_end.wait()
        raise CheckpointError("nobody hears of it")

    monkeypatch.setattr(engine_module, "find_checkpoint", fetch)
    starting = asyncio.create_task(build_engine(folder, FakeWorker()).start())
    await has_begun.wait()
    [thread] = [thread for thread in threading.enumerate() if thread.name == "find-checkpoint"]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert thread.is_alive()
    # What ends with the loop is what `asyncio.run` waits for.
    await loop.shutdown_default_executor()
    may_end.set()
    thread.join(10)


async def test_the_first_worker_is_timed_before_anybody_is_served(folder: Path):
    """Limits and the scheduler start from what passes take here, not from a guess."""
    first, second = FakeWorker(device_s=0.5), FakeWorker()
    engine = build_engine(folder, first, second)
    await engine.start()
    assert [sum(tokens) for tokens in first.passes][:6:2] == [8, 16, 32]
    assert max(max(tokens) for tokens in first.passes) == WORDS.max_tokens
    assert second.passes == []
    await engine.stop(drain_s=0)


async def test_the_first_pass_of_images_is_not_counted_either(folder: Path):
    """It allocates and chooses kernels: counted, it made every image seem several times as dear."""

    class ColdEyes(FakeWorker):
        num_images_seen = 0

        async def run(self, features: Sequence[Features], **options: Any) -> PassResult:
            result = await super().run(features, **options)
            num_image_tokens = sum(one.num_image_tokens for one in features)
            if num_image_tokens:
                self.num_images_seen += 1
            is_cold = self.num_images_seen == 1
            return replace(result, device_s=100.0 if is_cold else 0.001 + 0.001 * num_image_tokens)

    worker = ColdEyes(info=PICTURES)
    async with serving(folder, worker, open_decoder=lambda _spec: FakeDecoder()) as engine:
        assert worker.num_images_seen == 4
        image = await engine.decode_image(b"x", lane=Lane.DOCUMENT)
        await engine.embed([EmbeddingInput(images=(image,))] * 100, lane=Lane.DOCUMENT, timeout_s=None)
    # A pass is as long as it may be, by what images cost when warm.
    passes = [sum(tokens) for tokens in worker.passes[-20:]]
    assert max(passes) > 100

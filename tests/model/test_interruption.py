"""A pass that others interrupt gives the bits of one that nobody does, and so do those that interrupt it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.blocks import BlockWatch, blocks_of
from model.encoder import TransformerEncoder
from model.fused import FusedLayer
from model.interruption import Safepoints, current_safepoints, safepoints
from model.packing import packed, packed_attention
from model.types import Features
from model.worker.passes import Interruptions, run_pass
from tests.model import gme_cases
from tests.model.checkpoints import build_checkpoint

Load = Callable[..., TransformerEncoder]


def random_features(lengths: Sequence[int], *, seed: int, vocab_size: int = 30_000) -> list[Features]:
    random = np.random.default_rng(seed)
    return [
        Features(token_ids=random.integers(5, vocab_size, size=length).astype(np.int32)) for length in lengths
    ]


DOCUMENT_LENGTHS, QUERY_LENGTHS = (40, 17, 40, 5, 90), (9, 3)
DOCUMENTS = random_features(DOCUMENT_LENGTHS, seed=1)
QUERIES = random_features(QUERY_LENGTHS, seed=2)

MINILM_PLACES = 6 * 4
"""Before each of its layers, before and behind attention, and in the middle of the feed-forward."""


class Interrupting:
    """Runs other passes before some blocks of a pass, as a worker does."""

    def __init__(
        self, encoder: TransformerEncoder, features: Sequence[Features], *, before: set[int]
    ) -> None:
        self._encoder = encoder
        self._features = features
        self._before = before
        self.num_blocks = 0
        self.rows: list[np.ndarray] = []

    def __call__(self) -> None:
        if self.num_blocks in self._before:
            self.rows.append(run_pass(self._encoder, self._features).rows)
        self.num_blocks += 1


def assert_interruptions_change_nothing(
    encoder: TransformerEncoder, documents: Sequence[Features], queries: Sequence[Features]
) -> int:
    """Interrupt before each block by itself, then before all; returns how many there are."""
    undisturbed, alone = encoder.encode(documents), encoder.encode(queries)
    counting = Interrupting(encoder, queries, before=set())
    run_pass(encoder, documents, points=Safepoints(on_safepoint=counting))
    every_block = range(counting.num_blocks)
    for before in (*({index} for index in every_block), set(every_block)):
        interrupting = Interrupting(encoder, queries, before=before)
        rows = run_pass(encoder, documents, points=Safepoints(on_safepoint=interrupting)).rows
        np.testing.assert_array_equal(rows, undisturbed)
        assert len(interrupting.rows) == len(before)
        # Had a pass that interrupts been interrupted, its blocks would have been counted.
        assert interrupting.num_blocks == counting.num_blocks
        for inside in interrupting.rows:
            np.testing.assert_array_equal(inside, alone)
    return counting.num_blocks


def test_minilm_with_its_fused_layers(minilm: TransformerEncoder):
    assert minilm.info.is_packed
    assert assert_interruptions_change_nothing(minilm, DOCUMENTS, QUERIES) == MINILM_PLACES


@pytest.mark.parametrize(
    "architecture", ["bert", "xlm-roberta", "modernbert", "qwen3", "qwen2-sliding", "mpnet", "t5"]
)
@pytest.mark.parametrize("pad_passes", [False, True])
def test_every_kind_of_transformer(architecture: str, pad_passes: bool, tmp_path: Path, load_from: Load):
    """Windows and rotary positions, causal and not, packed and padded, one batch a pass and several."""
    encoder = load_from(build_checkpoint(tmp_path, architecture), pad_passes=pad_passes)
    vocab_size = encoder.info.vocab_size
    documents = random_features(DOCUMENT_LENGTHS, seed=1, vocab_size=vocab_size)
    queries = random_features(QUERY_LENGTHS, seed=2, vocab_size=vocab_size)
    assert assert_interruptions_change_nothing(encoder, documents, queries) >= 2


def test_gme_between_the_blocks_of_both_towers(gme: TransformerEncoder):
    cases = gme_cases.cases()
    documents = gme_cases.features_of(gme.info, [cases[index].input for index in (14, 0, 11, 6, 17)])
    queries = gme_cases.features_of(gme.info, [cases[index].input for index in (6, 11)])
    assert any(one.images for one in documents)
    assert any(one.images for one in queries)
    num_blocks = assert_interruptions_change_nothing(gme, documents, queries)
    assert num_blocks == sum(watch.num_blocks for watch in gme._layers.backbone.block_watches)


def test_a_pass_that_fails_inside_leaves_the_other_as_it_was(minilm: TransformerEncoder):
    """It fails deep in the model, where the row's segments are its own."""
    undisturbed = minilm.encode(DOCUMENTS)
    beyond_the_vocabulary = [Features(token_ids=np.array([101, 10**6, 102], dtype=np.int32))]

    def fail() -> None:
        with pytest.raises(IndexError):
            run_pass(minilm, beyond_the_vocabulary)

    rows = run_pass(minilm, DOCUMENTS, points=Safepoints(on_safepoint=fail)).rows
    np.testing.assert_array_equal(rows, undisturbed)


def test_a_pass_that_fails_after_an_interruption_leaves_nothing_behind(minilm: TransformerEncoder):
    undisturbed = minilm.encode(DOCUMENTS)
    interrupting = Interrupting(minilm, QUERIES, before={0, 1})

    def fail_at_the_third_block() -> None:
        interrupting()
        if interrupting.num_blocks == 3:
            raise MemoryError

    with pytest.raises(MemoryError):
        run_pass(minilm, DOCUMENTS, points=Safepoints(on_safepoint=fail_at_the_third_block))
    assert current_safepoints() is None
    np.testing.assert_array_equal(minilm.encode(DOCUMENTS), undisturbed)


def test_the_time_of_interruptions_is_told_apart(minilm: TransformerEncoder):
    interruptions = Interruptions()
    alone_s = run_pass(minilm, DOCUMENTS).device_s

    def interrupt() -> None:
        interruptions.add(run_pass(minilm, DOCUMENTS * 4).device_s)

    points = Safepoints(on_safepoint=interrupt)
    result = run_pass(minilm, DOCUMENTS, points=points, interruptions=interruptions)
    assert result.num_interruptions == MINILM_PLACES
    assert result.interrupted_s == interruptions.total_s
    # Some 24 times as long as the pass itself, which therefore cannot hide in it.
    assert result.interrupted_s > 4 * alone_s
    assert result.device_s < result.interrupted_s / 2


def test_packed_rows_within_packed_rows_have_their_own_segments():
    states = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    module = nn.Identity()

    def attend(num_tokens: int) -> torch.Tensor:
        return packed_attention(module, *[states[:, :, :num_tokens]] * 3, None, is_causal=False)[0]

    with packed([4, 2]):
        before = attend(6)
        with packed([1, 1, 1]):
            inside = attend(3)
        after = attend(6)
    # Each token of the inner row is alone with itself.
    assert torch.equal(inside, states[:, :, :3].transpose(1, 2))
    assert torch.equal(before, after)


# Blocks


def test_without_safepoints_nothing_is_called_and_with_none_neither():
    model = nn.Sequential(nn.ModuleList([nn.Identity()]))
    BlockWatch(model, torch.device("cpu"))
    called: list[int] = []
    [block] = blocks_of(model)
    block(torch.zeros(1))
    with safepoints(Safepoints(on_safepoint=lambda: called.append(1))):
        block(torch.zeros(1))
        with safepoints(None):
            block(torch.zeros(1))
        block(torch.zeros(1))
    assert called == [1, 1]


def test_blocks_are_the_longest_list_of_modules_and_not_the_experts_inside_of_one():
    blocks = nn.ModuleList([nn.Sequential(nn.ModuleList([nn.Identity()] * 8)) for _ in range(4)])
    model = nn.Sequential(nn.ModuleList([nn.Identity()]), nn.Sequential(blocks))
    assert blocks_of(model) == list(blocks)


def test_a_model_without_a_list_of_blocks_is_not_interrupted():
    assert BlockWatch(nn.Linear(2, 2), torch.device("cpu")).num_blocks == 0


def test_the_blocks_of_minilm_are_its_fused_layers(minilm: TransformerEncoder):
    """Hooks on the layers that were replaced would never be called."""
    blocks = blocks_of(minilm._layers.backbone._transformer)
    assert [type(block) for block in blocks] == [FusedLayer] * 6


def test_a_watch_that_is_removed_watches_no_more():
    called: list[int] = []
    model = nn.ModuleList([nn.Identity()])
    watch = BlockWatch(model, torch.device("cpu"))
    watch.remove()
    with safepoints(Safepoints(on_safepoint=lambda: called.append(1))):
        model[0](torch.zeros(1))
    assert called == []


@pytest.mark.parametrize("max_blocks_ahead", [1, 2, 4])
def test_on_cuda_no_more_blocks_are_launched_ahead_than_allowed(
    max_blocks_ahead: int, monkeypatch: pytest.MonkeyPatch
):
    """A fake device that does nothing until it is waited for."""
    launched: list[int] = []
    done: list[int] = []

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            self.number = len(launched)

        def record(self, stream: object) -> None:
            launched.append(self.number)

        def synchronize(self) -> None:
            done.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    ahead: list[int] = []
    model = nn.ModuleList([nn.Identity() for _ in range(10)])
    BlockWatch(model, torch.device("cuda"))
    points = Safepoints(
        on_safepoint=lambda: ahead.append(len(launched) - len(done)), max_blocks_ahead=max_blocks_ahead
    )
    with safepoints(points):
        for block in model:
            block(torch.zeros(1))
    assert max(ahead) == max_blocks_ahead
    assert done == list(range(10 - max_blocks_ahead))

    launched.clear()
    with safepoints(Safepoints(on_safepoint=lambda: None)):
        model[0](torch.zeros(1))
    assert launched == []

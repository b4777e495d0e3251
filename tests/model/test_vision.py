"""Patches and positions of images: the very numbers of transformers' own Qwen2-VL."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from model import CheckpointError
from model.encoder import TransformerEncoder
from model.families import gme as family
from model.families.family import ImageRecipe
from model.packing import packed_attention
from model.vision import PACKED_VISION_ATTENTION, PatchReader, grid_position_ids
from model.worker import LoadOptions
from tests.model.conftest import load
from tests.model.gme_cases import FOLDER, cases, embed, random_image
from tests.model.leaking import whole_row_attention

IMAGE = 412
"""The id of an image's tokens in the tiny checkpoint."""

token_grids = st.tuples(st.integers(1, 9), st.integers(1, 9))
some_texts_and_images = st.lists(st.integers(0, 5) | token_grids, min_size=1, max_size=6)
"""Of a row: so many tokens of text, or an image of so many rows and columns."""


@pytest.fixture(scope="module")
def recipe() -> ImageRecipe:
    images = family.read(FOLDER, LoadOptions(folder=str(FOLDER), source="tiny-gme")).images
    assert images is not None
    return images


@pytest.fixture(scope="module")
def own_positions() -> Callable[..., Any]:
    """``get_rope_index`` of the model itself."""
    recipe = family.read(FOLDER, LoadOptions(folder=str(FOLDER), source="tiny-gme"))
    assert recipe.towers is not None
    with torch.device("meta"):
        return Qwen2VLModel(Qwen2VLConfig(**recipe.towers.config)).get_rope_index


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (6, 2)])
def test_patches_are_bit_for_bit_those_of_the_image_processor(grid: tuple[int, int], recipe: ImageRecipe):
    images = [random_image(*grid).pixels, random_image(2, 3, seed=1).pixels]
    ours, our_grids = PatchReader(recipe, torch.device("cpu")).read(images)
    theirs = Qwen2VLImageProcessorPil(do_resize=False)(images, return_tensors="pt")
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs["pixel_values"])
    assert torch.equal(our_grids, theirs["image_grid_thw"])


def test_every_value_of_a_pixel_is_the_image_processors(recipe: ImageRecipe):
    """An image of 28 by 28 pixels in which each of the 256 values stands in each colour."""
    pixels = np.resize(np.arange(256, dtype=np.uint8), (28, 28))[..., None].repeat(3, axis=2)
    ours, _ = PatchReader(recipe, torch.device("cpu")).read([pixels])
    theirs = Qwen2VLImageProcessorPil(do_resize=False)([pixels], return_tensors="pt")
    assert torch.equal(ours, theirs["pixel_values"])


@given(row=some_texts_and_images)
@settings(deadline=None)
def test_grid_positions_are_those_of_the_model(
    row: list[int | tuple[int, int]], own_positions: Callable[..., Any]
):
    ids: list[int] = []
    grids: list[tuple[int, int]] = []
    for part in row:
        if isinstance(part, int):
            ids += [7] * part
        else:
            # A text token between images, as their start and end tokens always are.
            ids += [7, *[IMAGE] * (part[0] * part[1])]
            grids.append(part)
    ids.append(7)
    ids_1L = torch.tensor([ids])
    expected, _ = own_positions(
        ids_1L,
        mm_token_type_ids=(ids_1L == IMAGE).int(),
        image_grid_thw=torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in grids])
        if grids
        else None,
    )
    actual = grid_position_ids(np.array(ids) == IMAGE, grids)
    assert np.array_equal(actual, expected[:, 0].numpy())


def test_a_wide_image_takes_as_many_positions_as_columns():
    positions = grid_position_ids(np.array([False, True, True, True, True, True, True, False]), [(2, 3)])
    assert positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]


def test_all_images_of_a_pass_share_one_attention_call_a_layer(gme: TransformerEncoder):
    """transformers makes one call an image for names of attention that it does not take for FlashAttention."""
    rows_of_calls: list[int] = []

    def counting(module: torch.nn.Module, query_1HTd: torch.Tensor, *others: Any, **options: Any) -> Any:
        rows_of_calls.append(query_1HTd.shape[2])
        return packed_attention(module, query_1HTd, *others, **options)

    AttentionInterface.register(PACKED_VISION_ATTENTION, counting)
    try:
        embed(gme, cases()[10].input, cases()[0].input, cases()[15].input)
    finally:
        AttentionInterface.register(PACKED_VISION_ATTENTION, packed_attention)
    num_patches = 4 * sum(case.input.images[0].num_tokens for case in (cases()[10], cases()[15]))
    assert rows_of_calls == [num_patches] * 2  # of two layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_release_that_lets_inputs_see_each_other_is_refused(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """The trial at load is what stands between another transformers and a client's vectors."""
    monkeypatch.setattr("model.packing._segment_attention", whole_row_attention)
    with pytest.raises(CheckpointError, match="packed passes differ from single ones by"):
        load(FOLDER, dtype=dtype)

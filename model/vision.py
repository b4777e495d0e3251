"""Hidden states of rows that hold texts and images together: a vision tower, then a text tower, both packed.

The towers are called one by one, never through the model that holds them: given images it would number
positions its own way and keep state between calls (transformers 5.23). All images of a pass go through the
vision tower in one row of patches, each attending to itself; their merged patches take the places of their
pad tokens in the row of the text tower.

Shapes: T tokens of the row, P patches of all images, V values of a patch, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AttentionInterface

from model.blocks import BlockWatch
from model.encoder import TOLERANCE, disagreement
from model.errors import CheckpointError
from model.families.family import ImageRecipe, Positions, Towers
from model.packing import PACKED_ATTENTION, packed, packed_attention
from model.types import Features

PACKED_VISION_ATTENTION = "laneway_packed_flash_like"
"""The same function under a name with "flash" in it: for other names transformers cuts the row of patches
into one call an image (``VisionAttention``). Such a name cannot go through ``set_attn_implementation``, which
would look for a kernel to download."""

AttentionInterface.register(PACKED_VISION_ATTENTION, packed_attention)


class PatchReader:
    """Cuts images into the patches that a vision tower reads, with the values that its training saw."""

    def __init__(self, recipe: ImageRecipe, device: torch.device) -> None:
        self._recipe = recipe
        # A pixel has 256 values in 3 colours: what each becomes is looked up, in the very float32 numbers of
        # transformers' own image processor.
        scaled = np.arange(256, dtype=np.float64) * (1 / 255)
        mean_31, std_31 = (np.array([three], dtype=np.float32).T for three in (recipe.mean, recipe.std))
        table = (scaled.astype(np.float32) - mean_31) / std_31
        self._values = torch.from_numpy(table.reshape(-1)).to(device)
        self._device = device

    def read(self, images: Sequence[npt.NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Patches of all images, one after the other.

        Args:
            images: Each ``[H, W, 3]``.

        Returns:
            ``[P, V]`` float32 in the order that merging wants (the patches of a token are neighbours), and
            the grids ``[images, 3]``: time, rows and columns of patches.
        """
        patch_size = self._recipe.spec.patch_size
        patches_PV = torch.cat([self._patches(image) for image in images])
        grids = [(1, image.shape[0] // patch_size, image.shape[1] // patch_size) for image in images]
        return patches_PV, torch.tensor(grids, device=self._device)

    def _patches(self, image: npt.NDArray[np.uint8]) -> Tensor:
        patch, merge = self._recipe.spec.patch_size, self._recipe.spec.merge_size
        rows, columns = image.shape[0] // patch, image.shape[1] // patch
        # Bytes are put in order before they become four times as large.
        pixels = torch.tensor(image, device=self._device)
        pixels = pixels.view(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        # [token row, token column, row and column in the token, colour, pixel row, pixel column]
        pixels = pixels.permute(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, patch * patch)
        colour_offsets = torch.arange(3, device=self._device).view(1, 3, 1, 1) * 256
        values = self._values[pixels.int() + colour_offsets]
        return values.expand(-1, -1, self._recipe.temporal_patch_size, -1).reshape(rows * columns, -1)


class TwoTowerBackbone:
    """Gives one hidden state a token of rows in which images may stand. Packed passes only."""

    is_packed = True

    def __init__(self, model: Any, towers: Towers, images: ImageRecipe, *, pad_id: int) -> None:
        self._model = model
        self._vision = getattr(model, towers.vision)
        self._text = getattr(model, towers.text)
        self._positions = towers.positions
        self._spec = images.spec
        self._pad_id = pad_id
        self.device = next(model.parameters()).device
        self.block_watches = [BlockWatch(tower, self.device) for tower in (self._vision, self._text)]
        self.packing_note = "not tried"
        self._patches = PatchReader(images, self.device)

    @torch.inference_mode()
    def hidden_states(self, features: Sequence[Features]) -> Tensor:
        """Hidden states of all inputs laid end to end, ``[T, D]``."""
        ids_T = torch.from_numpy(np.concatenate([one.token_ids for one in features]).astype(np.int64))
        embeds_TD = self._text.embed_tokens(ids_T.to(self.device))
        images = [image for one in features for image in one.images]
        if images:
            is_image_T = (ids_T == self._pad_id).to(self.device)
            embeds_TD = embeds_TD.masked_scatter(is_image_T[:, None], self._vision_states(images))
        positions_3T = np.concatenate([self._position_ids(one) for one in features], axis=1)
        with packed([one.num_tokens for one in features]):
            output = self._text(
                inputs_embeds=embeds_TD.unsqueeze(0),
                position_ids=torch.from_numpy(positions_3T).unsqueeze(1).to(self.device),
                use_cache=False,
            )
        return output.last_hidden_state[0]

    def num_padding_tokens(self, features: Sequence[Features]) -> int:
        """Tokens that a pass of these inputs computes beside theirs: never any."""
        return 0

    def check_passes(self, *, vocab_size: int) -> None:
        """Compare a packed pass with the towers' own attention, input by input; then use packed passes.

        Raises:
            CheckpointError: They disagree: an installed transformers calls attention another way.
        """
        features = self._probe(vocab_size)
        alone_TD = torch.cat([self.hidden_states([one]) for one in features])
        # The packed function stays away from what ``set_attn_implementation`` would do with its second name.
        self._text.set_attn_implementation(PACKED_ATTENTION)
        self._vision.config._attn_implementation = PACKED_VISION_ATTENTION
        difference = disagreement(self.hidden_states(features), alone_TD)
        tolerance = TOLERANCE[alone_TD.dtype]
        if not difference <= tolerance:
            raise CheckpointError(
                f"packed passes differ from single ones by {difference:.1e} of the spread, more than "
                f"{tolerance:.0e}; this release of transformers is not supported"
            )
        self.packing_note = f"packed equals single to {difference:.0e} of the spread"

    def _probe(self, vocab_size: int) -> list[Features]:
        random = np.random.default_rng(0)
        side = self._spec.token_side
        ordinary = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), [self._pad_id])
        features: list[Features] = []
        for length, token_grid in ((7, None), (12, (2, 2)), (40, None), (15, (1, 3)), (40, None)):
            token_ids = random.choice(ordinary, size=length).astype(np.int32)
            images: tuple[npt.NDArray[np.uint8], ...] = ()
            if token_grid is not None:
                rows, columns = token_grid
                token_ids[3 : 3 + rows * columns] = self._pad_id
                images = (random.integers(0, 256, (rows * side, columns * side, 3), dtype=np.uint8),)
            features.append(Features(token_ids=token_ids, images=images))
        return features

    def _vision_states(self, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Merged patches of all images, one a token: ``[tokens, D]``."""
        patches_PV, grids = self._patches.read(images)
        with packed([rows * columns for _, rows, columns in grids.tolist()]):
            return self._vision(patches_PV, grid_thw=grids).pooler_output

    def _position_ids(self, one: Features) -> npt.NDArray[np.int64]:
        """``[3, L]``: positions on the axes of time, rows and columns."""
        if self._positions is Positions.SEQUENTIAL or not one.images:
            return np.broadcast_to(np.arange(one.num_tokens), (3, one.num_tokens))
        return grid_position_ids(
            one.token_ids == self._pad_id,
            [
                (image.shape[0] // self._spec.token_side, image.shape[1] // self._spec.token_side)
                for image in one.images
            ],
        )


def grid_position_ids(
    is_image_L: npt.NDArray[np.bool_], token_grids: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Positions by time, row and column (M-RoPE): what ``Qwen2VLModel.get_rope_index`` gives.

    A text token is one further on all axes. The tokens of an image share their time, and count rows and
    columns from there; what follows continues behind the larger of the two.

    Args:
        is_image_L: Which tokens stand for images.
        token_grids: Rows and columns of tokens of each image, in order.

    Returns:
        ``[3, L]``.
    """
    parts: list[npt.NDArray[np.int64]] = []
    position = index = 0
    grids = iter(token_grids)
    while index < len(is_image_L):
        if is_image_L[index]:
            rows, columns = next(grids)
            axes = np.indices((1, rows, columns)).reshape(3, -1) + position
            position += max(rows, columns)
        else:
            following = np.flatnonzero(is_image_L[index:])
            num_text = int(following[0]) if len(following) else len(is_image_L) - index
            axes = np.broadcast_to(np.arange(position, position + num_text), (3, num_text))
            position += num_text
        parts.append(axes)
        index += axes.shape[1]
    return np.concatenate(parts, axis=1)

"""Where the blocks of a transformer begin, and how far ahead of the device they may be launched.

On CUDA the thread that launches kernels runs ahead of the device: when it comes to the last block, the device
may be at the first, and whatever it launches now runs after all of them. So in passes that may be interrupted
it waits, before each block, until all but the last few are done. Not measured on a device yet:
``python -m bench.interruption --device cuda`` measures what that costs and what it gives.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from model.interruption import current_safepoints


class BlockWatch:
    """Calls the safepoints of the pass that is computed before every block of a model."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Watch a model, or a tower of one, from now on.

        Args:
            model: Its blocks are found (see ``blocks_of``).
            device: Where it computes.
        """
        self._device = device
        self._launched: deque[torch.cuda.Event] = deque()
        """One for each block that may not be done, oldest first."""
        self._hooks = [block.register_forward_pre_hook(self._before_block) for block in blocks_of(model)]

    @property
    def num_blocks(self) -> int:
        """Blocks that are watched. Within some of them there are more places (``fused.py``)."""
        return len(self._hooks)

    def remove(self) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _before_block(self, _block: nn.Module, _arguments: Any) -> None:
        points = current_safepoints()
        if points is None:
            return
        if points.max_blocks_ahead is not None and self._device.type == "cuda":
            self._wait_for_device(points.max_blocks_ahead)
        points.on_safepoint()

    def _wait_for_device(self, max_blocks_ahead: int) -> None:
        # Those left over from an earlier pass are done, so there is nothing to reset between passes.
        event = torch.cuda.Event(blocking=True)  # the core is given to others while it waits
        event.record(torch.cuda.current_stream(self._device))
        self._launched.append(event)
        while len(self._launched) > max_blocks_ahead:
            self._launched.popleft().synchronize()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks that hidden states go through one after the other: the longest list of modules in a model.

    Lists inside of blocks, such as experts, are none of them. A block that is called several times in a pass
    (ALBERT) is listed once. Empty where there is no list: such a model is not interrupted.
    """
    return max((list(one) for one in _outer_lists(model)), key=len, default=[])


def _outer_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    if isinstance(module, nn.ModuleList):
        yield module
        return
    for child in module.children():
        yield from _outer_lists(child)

"""One block of a model as a network of its own."""

import copy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prunus.folder.stand_ins import Call

__all__ = ["BlockNet", "Home", "moved"]


@runtime_checkable
class Home(Protocol):
    """What a block must know of the model around it; a `Skeleton`."""

    def block_name(self, index: int) -> str: ...

    def calls(self, batch: int, positions: int, mask: Tensor | None = None) -> list[Call]: ...


class BlockNet(nn.Module):
    """One block as a network of its own, its parts under the names that they have in the model.

    Its input is the stream: a tensor (batch, positions, width), and an `attention_mask` where
    there is padding. What else the block is called with, the model's own code says.
    """

    def __init__(self, skeleton: Home, index: int, block: nn.Module) -> None:
        super().__init__()
        self.index = index
        holder: nn.Module = self
        *path, last = skeleton.block_name(index).split(".")
        for part in path:
            inner = nn.Module()
            holder.add_module(part, inner)
            holder = inner
        holder.add_module(last, block)
        object.__setattr__(self, "_skeleton", skeleton)

    @property
    def block(self) -> nn.Module:
        """The block."""
        skeleton: Home = self.__dict__["_skeleton"]
        return self.get_submodule(skeleton.block_name(self.index))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The stream behind the block."""
        skeleton: Home = self.__dict__["_skeleton"]
        batch, positions = hidden_states.shape[:2]
        args, kwargs = skeleton.calls(batch, positions, attention_mask)[self.index]
        place = hidden_states.device
        args, kwargs = moved(args, place), moved(kwargs, place)
        answer = self.block(hidden_states, *args, **kwargs)
        stream: Tensor = answer[0] if isinstance(answer, tuple | list) else answer
        return stream

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockNet":
        skeleton: Home = self.__dict__["_skeleton"]
        made = BlockNet(skeleton, self.index, copy.deepcopy(self.block, memo))
        return made.train(self.training)


def moved(tree: Any, device: torch.device) -> Any:
    """A tree whose tensors are on a device."""
    from torch.utils._pytree import tree_map_only

    return tree_map_only(Tensor, lambda t: t.to(device), tree)

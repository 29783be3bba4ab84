"""Values that modules take and give: nested tuples, lists and mappings with tensors as leaves."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

__all__ = ["Snapshot", "copied", "plain", "tensors_of"]

# Leaves that nobody can change in place. Anything else (a cache, a generator, a user's object) may
# carry news from one module to another, which no copy of an output would bring along.
CONSTANT = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def flattened(tree: Any) -> tuple[list[Any], list[Any]]:
    """The leaves, and what tells one layout from another.

    As torch's `tree_flatten`, which serves what is no plain tuple, list or dict; it is ten times as
    slow, and this runs at every call of a module.
    """
    leaves: list[Any] = []
    layout: list[Any] = []
    _flatten(tree, leaves, layout)
    return leaves, layout


def _flatten(tree: Any, leaves: list[Any], layout: list[Any]) -> None:
    kind = type(tree)
    if kind is tuple or kind is list:
        layout.append((kind, len(tree)))
        for part in tree:
            _flatten(part, leaves, layout)
    elif kind is dict:
        layout.append((kind, *tree))
        for part in tree.values():
            _flatten(part, leaves, layout)
    elif tree is None or isinstance(tree, (Tensor, *CONSTANT)):
        leaves.append(tree)
    else:
        own, spec = tree_flatten(tree)
        leaves.extend(own)
        layout.append(spec)


def copied(tree: Any) -> Any:
    """The tree with copies of its tensors, strides kept."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    return tree_map_only(Tensor, lambda t: t.detach().clone(), tree)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    return [leaf for leaf in flattened(tree)[0] if isinstance(leaf, Tensor)]


def plain(tree: Any) -> bool:
    """True where every leaf is a tensor of its own memory, or a constant."""
    leaves = [leaf for leaf in flattened(tree)[0] if leaf is not None]
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return all(isinstance(leaf, (Tensor, *CONSTANT)) for leaf in leaves) and len(
        {_place(t) for t in found}
    ) == len(found)


class Snapshot:
    """A tree as it is now: whether it was changed since, and whether another shares its memory."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._leaves, self._layout = flattened(tree)
        self._places = {_place(t) for t in self._leaves if isinstance(t, Tensor)}
        self._versions = _versions(self._leaves)

    @property
    def unchanged(self) -> bool:
        """True where the same leaves stand in the same places, and no tensor was written to."""
        leaves, layout = flattened(self._tree)
        known = all(leaf is None or isinstance(leaf, (Tensor, *CONSTANT)) for leaf in leaves)
        return (
            known
            and layout == self._layout
            and self._versions is not None
            and self._versions == _versions(leaves)
            and all(a is b for a, b in zip(leaves, self._leaves, strict=True))
        )

    def apart(self, tree: Any) -> bool:
        """True where no tensor of `tree` shares memory with this one's."""
        return self._places.isdisjoint(_place(t) for t in tensors_of(tree))


def _versions(leaves: list[Any]) -> list[int] | None:
    """How often each tensor was written to; None where torch does not count it."""
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return None if any(t.is_inference() for t in found) else [t._version for t in found]


def _place(tensor: Tensor) -> int:
    """What tells one tensor's memory from another's."""
    try:
        place = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a tensor without a storage of its own
        place = 0
    return place or id(tensor)

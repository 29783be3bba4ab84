"""Norms whose statistics run over the channels that are cut: what each needs, and what it becomes.

With d inputs of which d′ stay, and zeros in the place of the others, an RMS norm divides by
√(Σ x²/d + ε). The smaller one gives the same numbers with γ′ = γ √(d/d′) and ε′ = ε d/d′. A layer
norm or group norm also subtracts a mean, which the zeros move: there is no such correction.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.coupling import Group

__all__ = [
    "KeptStatistics",
    "Kind",
    "describe",
    "fold_rms",
    "is_rms",
    "kind_of",
    "norms_across",
    "rms_offset",
    "scale_epsilon",
    "with_statistics",
]

Kind = Literal["exact", "foldable", "inexact"]
LAYER_NORMS = (torch.layer_norm, nn.functional.layer_norm)
GROUP_NORMS = (torch.group_norm, nn.functional.group_norm)
ARGUMENTS = ("input", "size", "weight", "bias", "eps")
OWN_STATISTICS = nn.modules.batchnorm._NormBase  # one mean and variance for each channel


def is_rms(module: nn.Module) -> bool:
    """A norm by the root mean square with a weight: torch's, or one of Hugging Face's classes."""
    if getattr(module, "weight", None) is None:
        return False
    named = type(module).__name__.endswith("RMSNorm") and _epsilon(module) is not None
    return isinstance(module, nn.RMSNorm) or named or _acts_as_rms(module)


def _acts_as_rms(module: Any) -> bool:
    """Whether a module written by hand computes x √d / ‖x‖ γ, with an epsilon that it keeps."""
    weight, epsilon = module.weight, _epsilon(module)
    own = list(module.parameters())
    if len(own) != 1 or weight.ndim != 1 or epsilon is None or any(module.children()):
        return False
    line = torch.linspace(-1.0, 2.0, len(weight), dtype=weight.dtype, device=weight.device)
    for x in (line[None], line.flip(0)[None] * 1e-2):
        try:
            with torch.no_grad():
                found = module(x)
        except Exception:  # a user's code, which may take something else
            return False
        scale = (x.square().mean(-1, keepdim=True) + getattr(module, epsilon)).rsqrt()
        expected = x * scale * (weight + rms_offset(module))
        if not isinstance(found, Tensor) or found.shape != x.shape:
            return False
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            return False
    return True


def norms_across(model: nn.Module, group: Group) -> list[str]:
    """The norms of a group whose statistics run over several of its channels."""
    found = []
    # An RMS norm written out in a forward pass is known by the member that its weight is.
    owners = [slot.parameter.rpartition(".")[0] for slot in group.slots if slot.role == "out"]
    by_weight = [name for name in owners if is_rms(model.get_submodule(name))]
    for name in dict.fromkeys((*group.norms, *by_weight)):
        module = model.get_submodule(name)
        alone = isinstance(module, OWN_STATISTICS) or (
            isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels
        )
        if not alone:
            found.append(name)
    return found


def kind_of(model: nn.Module, group: Group) -> Kind:
    """Whether a group's classes can go exactly, with RMS norms corrected, or not exactly."""
    if group.exact:
        return "exact"
    across = norms_across(model, group)
    folds = bool(across) and all(is_rms(model.get_submodule(name)) for name in across)
    return "foldable" if folds else "inexact"


def describe(model: nn.Module, group: Group) -> str:
    """The norms over a group's channels, in words."""
    across = norms_across(model, group)
    said = [f"`{name}` ({type(model.get_submodule(name)).__name__})" for name in across]
    return f"the norm {', '.join(said)}" if said else "a norm without weights"


def rms_offset(module: nn.Module) -> float:
    """What a norm adds to its weight before it multiplies: Gemma's classes add 1."""
    return 1.0 if type(module).__name__.startswith("Gemma") else 0.0


def fold_rms(module: Any, before: int) -> None:
    """Correct the weight of an RMS norm, already cut, for the inputs it lost.

    Args:
        module: the norm with the weight that stays.
        before: number of entries of its weight before the cut.
    """
    ratio, offset = before / module.weight.numel(), rms_offset(module)
    with torch.no_grad():
        weight = (module.weight.to(torch.float64) + offset) * ratio**0.5 - offset
        module.weight.copy_(weight.to(module.weight.dtype))


def scale_epsilon(module: Any, before: int) -> None:
    """Correct the epsilon of an RMS norm, already cut, for the inputs it lost."""
    ratio = before / module.weight.numel()
    name = _epsilon(module)
    if name is not None:
        setattr(module, name, getattr(module, name) * ratio)
    else:  # torch takes the rounding of the precision
        module.eps = torch.finfo(module.weight.dtype).eps * ratio


def _epsilon(module: nn.Module) -> str | None:
    """The attribute that holds a norm's epsilon, where it holds one."""
    for name in ("variance_epsilon", "eps"):
        if isinstance(getattr(module, name, None), float):
            return name
    return None


def with_statistics(
    model: nn.Module, kept: Mapping[str, Tensor]
) -> "KeptStatistics | contextlib.nullcontext[None]":
    """The mode in which these norms take their statistics over these positions."""
    weights: dict[int, Tensor] = {}
    for name, index in kept.items():
        weights[id(model.get_submodule(name).weight)] = index
    return KeptStatistics(weights) if weights else contextlib.nullcontext()


class KeptStatistics(TorchFunctionMode):
    """Layer and group norms that take their statistics over the kept channels alone.

    Under it a network with zeros computes what the smaller network with changed statistics
    should: the reference that an inexact cut is checked against.

    Args:
        kept: for weights of norms (by identity), the positions along axis 0 that stay.
    """

    def __init__(self, kept: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (*LAYER_NORMS, *GROUP_NORMS):
            return func(*args, **kwargs)
        given = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
        index = self._kept.get(id(given.get("weight")))
        if index is None:
            return func(*args, **kwargs)
        x, size = given["input"], given["size"] if "size" in given else given["normalized_shape"]
        axis = 1 if func in GROUP_NORMS else x.ndim - len(size)
        index = index.to(x.device)
        weight, bias = (
            None if p is None else p.index_select(0, index)
            for p in (given["weight"], given.get("bias"))
        )
        narrow = size if func in GROUP_NORMS else [len(index), *size[1:]]
        made = func(x.index_select(axis, index), narrow, weight, bias, given.get("eps", 1e-5))
        return torch.zeros_like(x).index_copy(axis, index, made.to(x.dtype))

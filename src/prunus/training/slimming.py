"""Slimming: batch norm's scales pulled towards zero while a network trains."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.check import positive
from prunus.coupling import couple
from prunus.hints import Batch

__all__ = ["Slimming", "slimming"]


class Slimming:
    """The L1 pull on scales, until `remove()`; also a context manager.

    Attributes:
        scales: names of the parameters that are pulled.
        strength: of the pull.
    """

    def __init__(self, scales: tuple[str, ...], strength: float, remove: list[Any]) -> None:
        """Keep what `slimming` has tied."""
        self.scales, self.strength, self._remove = scales, strength, remove

    def remove(self) -> None:
        """Take the hooks away."""
        while self._remove:
            self._remove.pop()()

    def __enter__(self) -> "Slimming":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def slimming(
    model: nn.Module, example: Batch, strength: float = 1e-4, *, optimizer: Optimizer | None = None
) -> Slimming:
    """Add strength · sign(γ) to the gradients of batch norm's scales; the loop stays as it is.

    The loss gains strength · Σ|γ|, so that scales of channels that matter little come to nothing,
    which recipe "bn-scale" then prunes. γ of channels that cannot be cut is left alone.

    Args:
        model: the network, trained by the caller.
        example: a batch, to find what goes together.
        strength: of the pull; the paper searches from 1e-5 to 1e-3, and takes 1e-4 for VGG and 1e-5
            for ResNet and DenseNet.
        optimizer: where given, it is looked at: weight decay on γ hides what the pull says.

    Returns:
        a handle with `remove()`.

    Raises:
        ValueError: no batch norm whose channels can be cut.

    References:
        Liu et al. (2017), Learning efficient convolutional networks through network slimming.
    """
    positive("strength", strength)
    names = [name for group in couple(model, example).groups if group.exact for name in group.norms]
    found: dict[str, nn.Parameter] = {}
    for name in dict.fromkeys(names):
        norm = model.get_submodule(name)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
            found[f"{name}.weight".lstrip(".")] = norm.weight
    if not found:
        raise ValueError(
            "No batch norm stands behind channels that can be cut, so there is nothing to slim. "
            "Use a recipe that does not need scales, such as 'fpgm'."
        )
    if optimizer is not None:
        _warn_of_decay(found, optimizer)

    def pull(parameter: Tensor) -> None:
        if parameter.grad is not None:
            with torch.no_grad():
                parameter.grad.add_(torch.sign(parameter), alpha=strength)

    ties: list[Callable[[], None]] = []
    if optimizer is None:
        for parameter in found.values():
            hook: Any = parameter.register_post_accumulate_grad_hook  # untyped in torch
            ties.append(hook(pull).remove)
    else:

        def before(*_: Any) -> None:
            for parameter in found.values():
                pull(parameter)

        ties.append(optimizer.register_step_pre_hook(before).remove)
    return Slimming(tuple(found), strength, ties)


def _warn_of_decay(scales: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    decayed = {
        id(p)
        for group in optimizer.param_groups
        if group.get("weight_decay")
        for p in group["params"]
    }
    named = [name for name, parameter in scales.items() if id(parameter) in decayed]
    if named:
        warnings.warn(
            f"The optimizer decays {named[0]!r} and {len(named) - 1} more scales, which pulls all "
            f"of them alike. Put them in a group with weight_decay=0.",
            RuntimeWarning,
            stacklevel=3,
        )

"""Zeros put into a model's parameters, and held there while it trains."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunus.modes import copied
from prunus.surgery.bits import IDLED, clear, idle, kept_bits
from prunus.weights import weights_of
from prunus.zeros import put_zeros

__all__ = ["Hold", "apply_masks", "claim", "emitting", "held", "hold", "is_held", "release"]

Masks = Mapping[str, Tensor]
_HOLDERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # how many hold masks on a model


class Hold:
    """Masks held by an optimizer's hook; `remove()` lets go."""

    def __init__(self, remove: list[Callable[[], None]]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """Take the hooks away; the zeros stay until something moves them."""
        while self._remove:
            self._remove.pop()()

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every masked entry to exactly zero, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mask = masks.get(name)
            if mask is not None:
                put_zeros(parameter, mask)


def emitting(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of `model` in which a unit that `masks` remove whole loses its incoming weights alone.

    Its bias and its outgoing weights stay, so it goes on emitting f(bias) for an activation f.
    Acharyya et al. (2021) score masked nodes so; `apply_masks` and `compact` remove them.
    """
    kept = copied(model)
    with torch.no_grad():
        for weight in weights_of(kept).values():
            mask = weight.mask(masks)
            if mask is not None:
                whole = mask.to(weight.parameter.device).any(1, keepdim=True)
                weight.put(weight.matrix() * whole)
    return kept


def hold(model: nn.Module, masks: Masks, optimizer: Any) -> Hold:
    """Zero the masked entries now and after every step of `optimizer` (of any, where None).

    One that wraps another, as accelerate's do in the Trainer of transformers, is followed to it.

    Gradients of masked entries are zeroed as they arrive, so that clipping by a norm does not
    count them; momentum and weight decay are undone after the step.

    Raises:
        TypeError: `optimizer` is none of torch's, nor wraps one.
        ValueError: the optimizer owns none of the parameters that have zeros to hold and learn.
    """
    if optimizer is not None:
        optimizer = _innermost(optimizer)
        _check_owner(model, masks, optimizer)
    zeros = _Zeros(model, masks)
    zeros.put()
    removers: list[Callable[[], None]] = []
    for name, parameter in model.named_parameters():
        if name in masks and parameter.requires_grad:
            hook: Any = parameter.register_post_accumulate_grad_hook  # untyped in torch
            removers.append(hook(zeros.cleaner(name)).remove)
    if optimizer is None:
        removers.append(register_optimizer_step_post_hook(zeros.after_step).remove)
    else:
        removers.append(optimizer.register_step_post_hook(zeros.after_step).remove)
    claim(model)
    removers.append(lambda: release(model))
    return Hold(removers)


def _innermost(optimizer: Any) -> Optimizer:
    """torch's optimizer inside wrappers that keep it as `optimizer`."""
    found, seen = optimizer, set[int]()
    while getattr(found, "optimizer", None) is not None and id(found) not in seen:
        seen.add(id(found))
        found = found.optimizer
    if not isinstance(found, Optimizer):
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer, or wrap one as its `optimizer`, got "
            f"{type(optimizer).__name__}. Pass the one whose step changes the parameters."
        )
    return found


def claim(model: nn.Module) -> None:
    """Count one more that holds masks on this model."""
    _HOLDERS[model] = _HOLDERS.get(model, 0) + 1


def release(model: nn.Module) -> None:
    """Count one less that holds masks on this model."""
    _HOLDERS[model] = _HOLDERS.get(model, 1) - 1


def is_held(model: nn.Module) -> bool:
    """True where something holds masks on this very module."""
    return _HOLDERS.get(model, 0) > 0


def _check_owner(model: nn.Module, masks: Masks, optimizer: Optimizer) -> None:
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    learning = {n: p for n, p in model.named_parameters() if n in masks and p.requires_grad}
    if learning and not any(id(p) in owned for p in learning.values()):
        raise ValueError(
            f"This optimizer owns none of the {len(learning)} pruned parameters (the first is "
            f"{next(iter(learning))!r}), so it cannot train them: it was probably made for the "
            f"dense network, or before the model was moved or copied. Make one of "
            f"`pruned.model.parameters()` and hold that."
        )


@contextmanager
def held(model: nn.Module, masks: Masks) -> Iterator[None]:
    """The masks held against every optimizer inside the block, and true at its end."""
    holder = hold(model, masks, None)
    try:
        yield
    finally:
        holder.remove()
        apply_masks(model, masks)


class _Zeros:
    """The zeros of a model that is held; its parameters may move to other devices meanwhile."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self._model, self._masks = model, masks
        self._bits: dict[str, Tensor] = {}
        self._steps = 0

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Put the zeros back after a step of the optimizer."""
        self.put()
        self._steps += 1
        if self._steps % IDLED == 1:
            for name, parameter in self._model.named_parameters():
                if name in self._masks:
                    idle(optimizer, parameter, self._masks[name].to(parameter.device))

    def put(self) -> None:
        """Zero the masked entries of all parameters."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in self._masks:
                    self._clear(name, parameter)

    def cleaner(self, name: str) -> Callable[[Tensor], None]:
        """A hook that zeroes the masked entries of a gradient."""

        def clean(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._clear(name, parameter.grad)

        return clean

    def _clear(self, name: str, values: Tensor) -> None:
        bits = self._bits.get(name)
        if bits is None or bits.device != values.device:
            bits = self._bits[name] = kept_bits(self._masks[name], values)
        clear(values, bits)

"""Masks that follow a course while the caller trains the model."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.check import all_finite
from prunus.courses import updates
from prunus.ranking import count_true
from prunus.result import Pruned
from prunus.surgery.bits import IDLED, clear, idle, kept_bits
from prunus.surgery.masked import apply_masks, claim, release
from prunus.training.account import account
from prunus.training.attached import closure_of, forget
from prunus.training.checkpoint import packed, restored
from prunus.training.chooser import Chooser, Chosen, everything
from prunus.training.ranks import check_agreement
from prunus.training.turn import Turn
from prunus.weights import weights_at

__all__ = ["Sparsifier"]


class Sparsifier:
    """Zeros that come, stay and move while a training goes on; `prunus.sparsify` makes one.

    Between two optimizer steps every removed entry of the model is exactly 0. Also a context
    manager, which takes its hooks away at the end.

    Attributes:
        model: what is trained; its keys, classes and parameters stay the same objects.
        steps: optimizer steps of the whole training.
        step_count: optimizer steps that were made; steps that a gradient scaler skips do not count.
    """

    def __init__(
        self,
        model: nn.Module,
        chooser: Chooser,
        optimizer: Optimizer | None,
        steps: int,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Make the first masks and tie the hooks; see `prunus.sparsify`."""
        self.model = model
        self.steps = steps
        self.step_count = 0
        self._chooser, self._optimizer, self._notes = chooser, optimizer, notes
        self._course = chooser.course
        self._updates = updates(self._course, steps)
        self._due = frozenset(self._updates)
        self._chosen = everything(model, chooser.unit)
        own = dict(model.named_parameters())
        self._parameters = {name: own[name] for name in self._chosen.masks}
        self._shadow: dict[str, Tensor] = {}
        self._gathered: dict[str, dict[str, Tensor]] = {}
        self._gradients: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # bits, of parameters that have zeros
        self._ready = False
        self._remove: list[Callable[[], Any]] = []
        self._by_hand: Callable[[], Any] | None = None
        if self._course.soft:
            self._shadow = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._gathered = {
            kind: {n: torch.zeros_like(p, dtype=torch.float32) for n, p in self._parameters.items()}
            for kind in chooser.job.recipe.score.gathers
        }
        if self._course.density(0.0, 0.5) < 1:
            self._chosen = chooser.choose(model, 0.0, None, {})
        self._put(self._chosen)
        self._tie()

    # What a training calls

    def before_step(self) -> None:
        """Take the gradients; called by itself before every step of the optimizer.

        A loop whose optimizer runs the backward pass itself, by a closure, calls `by_hand` once
        and this after every backward pass.

        Raises:
            ValueError: gradients that decide which weights return are not finite; the parameter is
                named.
        """
        self._check_open()
        due = self.step_count + 1 in self._due
        grows = due and self._course.grow is not None and self._course.grow.reads_gradient
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                gradient = parameter.grad
                if self._course.soft:
                    for sums in self._gathered.values():
                        if gradient is not None:
                            sums[name].addcmul_(
                                gradient.float(), self._shadow[name].float(), value=-1
                            )
                    parameter.copy_(self._shadow[name])
                    continue
                if gradient is None:
                    continue
                if grows:
                    if not all_finite(gradient):
                        raise ValueError(
                            f"The gradient of {name!r} is not finite at step "
                            f"{self.step_count + 1}, where it decides which weights return. Lower "
                            f"the learning rate, or skip such steps (a GradScaler does)."
                        )
                    self._gradients[name] = gradient.detach().clone()
                if name in self._kept:
                    clear(gradient, self._kept[name])
        self._ready = True

    def after_step(self) -> None:
        """Count the step, change the masks where they are due, and put the zeros back.

        Raises:
            RuntimeError: `before_step` was not called, and the course needs it.
        """
        self._check_open()
        if not self._ready and (self._course.soft or self._course.grow is not None):
            raise RuntimeError(
                "The optimizer made a step without `before_step`, so its gradients were not seen. "
                "Call before_step() after every backward pass."
            )
        self._ready = False
        self.step_count += 1
        with torch.no_grad():
            if self._course.soft:
                for name, parameter in self._parameters.items():
                    self._shadow[name].copy_(parameter)
            elif self.step_count in self._due:
                self._zero()
            if self.step_count in self._due:
                self._update()
            self._gradients.clear()
            self._zero()
            looks = self.step_count % IDLED == 1 or self.step_count in self._due
            if looks and not self._course.soft:
                for name in self._kept:
                    idle(self._optimizer, self._parameters[name], self._chosen.masks[name])

    def step(self) -> None:
        """Count a step of a loop without a torch optimizer, after its weights have moved.

        Courses that need gradients want `before_step()` first.

        Raises:
            ValueError: there is an optimizer, whose steps count by themselves.
        """
        if self._optimizer is not None:
            raise ValueError(
                "Steps of the optimizer count by themselves. `step` is for loops without one: "
                "sparsify(..., optimizer=None)."
            )
        self.after_step()

    def by_hand(self) -> "Sparsifier":
        """Leave `before_step` to the caller: for optimizers that are given a closure.

        Frameworks such as Lightning run forward and backward inside `optimizer.step`, after its
        hooks. Call `before_step()` after every backward pass, and `cancel()` where the optimizer
        then made no step.
        """
        if self._by_hand is not None:
            self._by_hand()
            self._by_hand = None
        return self

    def cancel(self) -> None:
        """Undo `before_step` where no step of the optimizer followed; else nothing."""
        if self._ready:
            self._ready = False
            self._gradients.clear()
            self._zero()

    def apply_to(self, model: nn.Module) -> None:
        """Zero what is removed in another model with the same names: an average of the weights.

        Averages forget removed weights slowly; call it before the average is used.

        Raises:
            ValueError: it lacks a pruned parameter.
        """
        own = dict(model.named_parameters())
        missing = [name for name in self._parameters if name not in own]
        if missing:
            raise ValueError(
                f"The model lacks parameter {missing[0]!r}. Pass the averaged model itself, such "
                f"as AveragedModel(...).module."
            )
        apply_masks(model, self.masks)

    # What it holds

    @property
    def masks(self) -> dict[str, Tensor]:
        """{parameter name: True where an entry is kept}, copies."""
        return {name: mask.clone() for name, mask in self._chosen.masks.items()}

    @property
    def density(self) -> float:
        """Kept / total of the pruned layers' weights."""
        kept = total = 0
        for weight in weights_at(self.model, self._chooser.unit.layers).values():
            mask = weight.kept(self._chosen.masks)
            kept, total = kept + count_true(mask), total + mask.numel()
        return kept / total

    def __repr__(self) -> str:
        return (
            f"Sparsifier({self._chooser.job.name!r}, step {self.step_count} of {self.steps}, "
            f"density {self.density:.4g})"
        )

    # The end, and checkpoints

    def finish(self, *, strict: bool = False) -> Pruned:
        """Take the hooks away and account for what was done; zeros stay as they are.

        The answer's `model` is the trained model itself.

        Args:
            strict: raise where the course has not come to its end, instead of a warning.

        Raises:
            ValueError: it was finished before; or not at its end, with `strict`.
        """
        self._check_open()
        notes = (*self._notes, f"made inside training, in {self.step_count} steps")
        if self._updates and self.step_count < self._updates[-1]:
            said = (
                f"The training ended at step {self.step_count}, before the last change of the "
                f"masks at step {self._updates[-1]}: the density is {self.density:.4g}."
            )
            if strict:
                raise ValueError(f"{said} Go on training, or lower `steps`.")
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            notes = (*notes, said)
        self._zero()
        self.remove()
        return account(self.model, self._chooser, self._chosen, notes)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training needs to go on: tensors, numbers and text.

        The weights and the optimizer's state are not in it.
        """
        return packed(
            self._chooser,
            self._chosen,
            step=self.step_count,
            steps=self.steps,
            shadow=self._shadow,
            gathered=self._gathered,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; load the model's and the optimizer's state too.

        Raises:
            ValueError: a state of another network, recipe, density, seed or number of steps.
        """
        self._check_open()
        found = restored(
            state,
            self._chooser,
            self._chosen,
            steps=self.steps,
            shadow=self._shadow,
            gathered=self._gathered,
        )
        self.step_count, self._chosen, self._chooser = found.step, found.chosen, found.chooser
        self._ready = False
        for name, value in found.shadow.items():
            self._shadow[name].copy_(value)
        for kind, values in found.gathered.items():
            for name, value in values.items():
                self._gathered[kind][name].copy_(value)
        with torch.no_grad():
            for name, value in self._shadow.items():
                self._parameters[name].copy_(value)
        self._put(self._chosen)

    def remove(self) -> None:
        """Take the hooks away; the zeros stay until something moves them."""
        while self._remove:
            self._remove.pop()()

    def __enter__(self) -> "Sparsifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # Inside

    def _tie(self) -> None:
        claim(self.model)
        self._remove.append(lambda: release(self.model))
        if not self._course.soft:
            for name, parameter in self._parameters.items():
                if parameter.requires_grad:
                    hook: Any = parameter.register_post_accumulate_grad_hook  # untyped in torch
                    self._remove.append(hook(self._cleaner(name)).remove)
        if self._optimizer is None:
            return
        self._remove.append(
            self._optimizer.register_step_post_hook(lambda *_: self.after_step()).remove
        )
        self._by_hand = self._optimizer.register_step_pre_hook(self._before).remove
        self._remove.append(self.by_hand)

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if closure_of(args, kwargs) is not None:
            raise ValueError(
                "The optimizer was given a closure, which runs the backward pass after the "
                "gradients should have been seen. Call `.by_hand()` once, and `.before_step()` at "
                "the end of the closure."
            )
        self.before_step()

    def _cleaner(self, name: str) -> Any:
        """A hook that keeps gradients of removed entries out of a clipping by norm."""

        def clean(parameter: Tensor) -> None:
            reads = self._course.grow is not None and self._course.grow.reads_gradient
            if reads and self.step_count + 1 in self._due:
                return
            if name in self._kept and parameter.grad is not None:
                clear(parameter.grad, self._kept[name])

        return clean

    def _update(self) -> None:
        own = dict(self.model.named_parameters())
        for name, parameter in self._parameters.items():
            if own.get(name) is not parameter:
                raise ValueError(
                    f"Parameter {name!r} was replaced by another object after `sparsify`, so that "
                    f"its zeros are not held. Change values in place, or sparsify afterwards."
                )
        old = self._chosen
        turn = Turn(step=self.step_count, steps=self.steps, due=self._updates)
        new = turn.after(self.model, self._chooser, old, self._gathered, self._gradients)
        if turn.first:
            check_agreement(new.masks)
        self._put(new)
        if self._course.soft:
            return
        for name, mask in self._chosen.masks.items():
            if not torch.equal(mask, old.masks[name]):
                forget(self._optimizer, self._parameters[name], mask != old.masks[name])

    def _put(self, chosen: Chosen) -> None:
        """Hold these masks from now on, and zero what they remove."""
        homes = {name: p.device for name, p in self._parameters.items()}
        masks = {name: mask.to(homes[name]) for name, mask in chosen.masks.items()}
        self._chosen = replace(chosen, masks=masks)
        self._kept = {
            name: kept_bits(mask, self._parameters[name])
            for name, mask in masks.items()
            if not bool(mask.all())
        }
        self._zero()

    def _zero(self) -> None:
        with torch.no_grad():
            for name, bits in self._kept.items():
                clear(self._parameters[name], bits)

    def _check_open(self) -> None:
        if not self._remove:
            raise ValueError(
                "This Sparsifier is finished: its hooks are gone. Call prunus.sparsify for another."
            )

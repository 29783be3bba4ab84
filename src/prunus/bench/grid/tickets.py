"""Controls of lottery tickets: fresh weights, or another mask, trained in the same way."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import Task, Train, fresh_model
from prunus.rng import generator_for
from prunus.surgery.masked import apply_masks, hold

__all__ = ["CONTROLS", "begun", "part_of_training", "shuffled", "trained_again"]

CONTROLS = {
    "re-initialised": "the ticket's mask on fresh initial weights",
    "shuffled": "the ticket's initial weights under its masks, permuted within each layer",
}
OTHER = 1_000_003  # added to a seed for the fresh weights, which no seed of a grid draws


def part_of_training(train: Train, span: tuple[float, float]) -> dict[str, Any]:
    """The argument that asks a task's trainer for a part; none where it trains in full, or must."""
    if span == (0.0, 1.0) or "span" not in inspect.signature(train).parameters:
        return {}
    return {"span": span}


def shuffled(masks: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
    """Each mask with its entries in a random order, so that every layer keeps its count.

    Raises:
        RuntimeError: an order that changes a mask was not found, where there is one.
    """
    found = {}
    for name, mask in masks.items():
        flat = mask.flatten()
        new = flat[torch.randperm(len(flat), generator=generator)]
        tries = 0
        while torch.equal(new, flat) and bool(flat.any()) and not bool(flat.all()):
            if tries == 100:
                raise RuntimeError(f"The mask of {name!r} came out unchanged 100 times.")
            new, tries = flat[torch.randperm(len(flat), generator=generator)], tries + 1
        found[name] = new.view(mask.shape)
    return found


def begun(
    chosen: Task,
    data: Dataset,
    role: str,
    early: float,
    masks: Mapping[str, Tensor],
    seed: int,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A control's network before its training, and the masks that it is trained under.

    `early` is the share of a training that the ticket was rewound to.
    """
    if role == "re-initialised":
        model, own = fresh_model(chosen, seed + OTHER), dict(masks)
    else:
        model = fresh_model(chosen, seed)
        if early > 0:  # to the moment that the ticket was rewound to
            start = generator_for(seed, "retraining", chosen.name, 0)
            part = part_of_training(chosen.train, (0.0, early))
            chosen.train(model, data, generator=start, hold=None, progress=False, **part)
        own = shuffled(masks, generator_for(seed, "shuffled masks", chosen.name))
    apply_masks(model, own)
    return model, own


def trained_again(
    chosen: Task,
    data: Dataset,
    role: str,
    model: nn.Module,
    masks: Mapping[str, Tensor],
    seed: int,
    asked: Mapping[str, Any],
) -> nn.Module:
    """The control after a training in full, or as the cell has `asked`, its zeros held."""
    chosen.train(
        model,
        data,
        generator=generator_for(seed, "retraining", chosen.name, role),
        hold=partial(hold, model, masks),
        progress=False,
        **asked,
    )
    return model

"""Which layers make a scope: the blocks of a network, found or named, and what lies between."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import call
from prunus.check import matches, unknown
from prunus.hints import Batch
from prunus.modes import evaluating
from prunus.scopes.trees import tensors_of

__all__ = ["blocks_of", "found_blocks", "scopes_of"]


def scopes_of(
    layers: Sequence[str], owners: Mapping[str, str], blocks: Sequence[str]
) -> list[tuple[str, ...]]:
    """The layers of each scope, in order of execution.

    A block is a scope. Layers that lie in no block are a scope together with those that run next
    to them, before, between or behind the blocks.

    Args:
        layers: in order of execution.
        owners: the module of each layer.
        blocks: names of modules, none inside another.
    """
    homes = {name: _home(owners[name], blocks) for name in layers}
    found: list[tuple[str | None, list[str]]] = []
    for name, home in homes.items():
        known = next((own for block, own in found if block == home and home is not None), None)
        if known is not None:
            known.append(name)
        elif home is None and found and found[-1][0] is None:
            found[-1][1].append(name)
        else:
            found.append((home, [name]))
    return [tuple(own) for _, own in found]


def _home(module: str, blocks: Sequence[str]) -> str | None:
    return next((b for b in blocks if module == b or module.startswith(f"{b}.")), None)


def blocks_of(
    model: nn.Module, asked: str, owners: Mapping[str, str], example: Batch
) -> tuple[str, ...]:
    """The names of the modules that are blocks.

    Args:
        model: the network.
        asked: "auto", or a glob of module names; of matches inside one another the outer counts.
        owners: the module of each layer.
        example: one batch, on the model's device.

    Raises:
        ValueError: no module matches, or none that holds a layer; no blocks were found.
    """
    if asked == "auto":
        found = found_blocks(model, owners, example)
        if not found:
            raise ValueError(
                "blocks='auto' found no nn.ModuleList or nn.Sequential whose members run one after "
                "another and map a stream to itself. Give a glob of module names, or leave "
                "`blocks` out."
            )
        return found
    names = [name for name, _ in model.named_modules() if name]
    matched = [name for name in names if matches(name, asked)]
    if not matched:
        raise unknown("module or glob of `blocks`", asked, names)
    outer = [n for n in matched if _home(n, [m for m in matched if m != n]) is None]
    holding = tuple(n for n in outer if any(_home(o, [n]) for o in owners.values()))
    if not holding:
        raise ValueError(
            f"`blocks` {asked!r} matches {', '.join(outer[:5])}, none of which holds a layer to "
            f"prune. Name modules that do."
        )
    return holding


def found_blocks(model: nn.Module, owners: Mapping[str, str], example: Batch) -> tuple[str, ...]:
    """Members of lists that run one after another, most of them mapping a stream to itself.

    A list inside a block is part of the block. Empty where there is no such list.
    """
    lists = {
        name: [f"{name}.{key}".lstrip(".") for key, _ in module.named_children()]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    members = {
        name: [m for m in own if any(_home(o, [m]) for o in owners.values())]
        for name, own in lists.items()
    }
    seen = _streams(model, dict.fromkeys(m for own in members.values() for m in own), example)
    found: list[str] = []
    for own in members.values():
        if len(own) < 2 or any(_home(m, found) for m in own):
            continue
        calls = [seen[m] for m in own]
        if any(len(c) != 1 for c in calls):
            continue
        places, taken, given = zip(*(c[0] for c in calls), strict=True)
        same = [
            a is not None and b is not None and a.shape == b.shape
            for a, b in zip(taken, given, strict=True)
        ]
        flows = all(
            a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(given[:-1], taken[1:], strict=True)
        )
        if list(places) == sorted(places) and flows and sum(same) >= max(2, (len(own) + 1) // 2):
            found.extend(own)
    return tuple(found)


Call = tuple[int, Tensor | None, Tensor | None]


def _streams(model: nn.Module, names: Mapping[str, None], example: Batch) -> dict[str, list[Call]]:
    """Each module's calls: when, the first tensor that it took, and the first that it gave."""
    found: dict[str, list[Call]] = {name: [] for name in names}
    clock = [0]
    taken: dict[str, tuple[int, Tensor | None]] = {}

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = tensors_of((args, kwargs))
        clock[0] += 1
        taken[name] = (clock[0], tensors[0].clone() if tensors else None)

    def after(name: str, module: nn.Module, args: Any, output: Any) -> None:
        tensors = tensors_of(output)
        found[name].append((*taken[name], tensors[0].clone() if tensors else None))

    hooks = []
    try:
        for name in names:
            module = model.get_submodule(name)
            hooks += [
                module.register_forward_pre_hook(partial(before, name), with_kwargs=True),
                module.register_forward_hook(partial(after, name)),
            ]
        with evaluating(model), torch.no_grad():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found

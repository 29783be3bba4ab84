"""A compressed file read: the tensors, or the pruned network."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from prunus.budget import Plan
from prunus.check import whole
from prunus.coding.state import MAX_BYTES, unpack
from prunus.compression.network import layers_of
from prunus.cost import anatomy, edge_cost, smaller_cost, sparse_cost
from prunus.modes import built, copied
from prunus.recipe import Recipe, parse
from prunus.result import Pruned
from prunus.surgery.resize import resize
from prunus.weights import weights_of

__all__ = ["decompress"]


def decompress(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> Pruned | dict[str, Tensor]:
    """The network of a file that `compress` wrote; nothing in the file is executed.

    Args:
        path: of the file.
        model: the dense architecture, or a function that builds it; its weights are not changed.
        max_bytes: that the decoded tensors may take; a file that says more is refused before
            anything is allocated.

    Returns:
        The tensors by name where `model` is None, else the pruned network, equal to the bit to
        the one that was compressed. Of a node pruning its model is the compact network.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, changed, foreign or newer, decodes to more than
            `max_bytes`, or does not fit the model.
        TypeError: `model` is no module, and no function that builds one.
    """
    whole("max_bytes", max_bytes, low=1)
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no compressed network at {source}.")
    state, masks, words = unpack(source.read_bytes(), max_bytes=max_bytes, source=str(source))
    for other, home in _ties(words, source).items():
        if home not in state:
            raise ValueError(f"{source} lacks the tensor {home!r}. Compress again.")
        state[other] = state[home]
    if model is None:
        return state
    dense = built(model)
    try:
        return _pruned(dense, state, masks, words)
    except (KeyError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"{source} does not fit the model: {lines[-1].strip()} Build the architecture that "
            f"was pruned."
        ) from None


def _ties(words: Mapping[str, str], source: Path) -> dict[str, str]:
    try:
        found = json.loads(words.get("ties", "{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(home, str) for home in found.values()):
        raise ValueError(f"{source} has a damaged account of its tensors. Copy it again.")
    return found


def _pruned(
    dense: nn.Module,
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    words: Mapping[str, str],
) -> Pruned:
    recipe = parse(words["recipe"])
    if not isinstance(recipe, Recipe):
        raise ValueError(f"its recipe is {words['recipe']!r}.")
    work = copied(dense)
    compact = "compact" in words
    if compact:
        work = resize(
            work, state, json.loads(words["compact"]), json.loads(words.get("numbers", "{}"))
        )
        masks = {}
    else:
        for key, value in [*work.named_parameters(), *work.named_buffers()]:
            if key in state and value.dtype != state[key].dtype:
                value.data = value.data.to(state[key].dtype)
        work.load_state_dict(dict(state))
    asked = [*masks, *(path.removesuffix(".weight") for path in masks)]
    known = weights_of(work, asked)
    names = [name for name, weight in known.items() if weight.path in masks]
    sizes, own = anatomy(dense), anatomy(work)
    after = (
        smaller_cost(own, own.shapes, list(weights_of(work)))
        if compact
        else sparse_cost(own, names, masks)
    )
    layers = layers_of(work, dict.fromkeys(names), masks)
    kept = {name: int(layer.mask.sum()) for name, layer in layers.items()}
    return Pruned(
        model=work,
        layers=layers,
        not_pruned={},
        plan=Plan(kept=kept, density=after.density, kind="compressed"),
        recipe=recipe,
        name=words["name"],
        seed=int(words["seed"]),
        cost_before=replace(edge_cost(sizes, {}), density=1.0),
        cost_after=after,
        masks=masks,
        stored_compact=work if compact else None,
    )

"""Residual blocks, or halves of them, that a network can lose: found by trial, masked, taken out.

A block x + f(x) is the identity once the projections that write f to the stream are zero. Which
these are, and whether a norm behind the sum acts again, is tried on a few samples.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.reasons import listed
from prunus.hints import Batch
from prunus.modes import copied, evaluating
from prunus.scopes import found_blocks
from prunus.scopes.trees import tensors_of
from prunus.surgery.readings import run
from prunus.surgery.stacks import renumber
from prunus.surgery.verify import CompactionError, verify_equal
from prunus.weights import weights_of

__all__ = [
    "Nothing", "Part", "Skippable", "drop", "gone_parts", "missing_of", "skippable", "take_out",
    "without", "zeros_of",
]  # fmt: skip

Part = str  # "block", "attention" or "mlp", as `Blocks` has checked
ATTENTION = re.compile(r"att", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Skippable:
    """A residual block, or the half of one, that can be left out.

    Attributes:
        name: of the block.
        chain: name of the list that it is a member of.
        writers: parameters without which it adds nothing to the stream.
        owners: the modules of these parameters that take the half's place, for a half.
    """

    name: str
    chain: str
    writers: tuple[str, ...]
    owners: tuple[str, ...] = ()


class Nothing(nn.Module):
    """Stands where attention or a feed-forward part was: adds zeros to the stream.

    Attributes:
        outputs: length of the tuple that the part gave, whose first entry is the stream's; 0
            where it gave the tensor alone.
    """

    def __init__(self, outputs: int = 0) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Zeros like the first tensor given."""
        zeros = torch.zeros_like(tensors_of((args, keywords))[0])
        return (zeros, *(None,) * (self.outputs - 1)) if self.outputs else zeros


def skippable(
    model: nn.Module, example: Batch, part: Part = "block"
) -> tuple[tuple[Skippable, ...], dict[str, str]]:
    """The blocks that can be left out for real, and {block: reason} of the others.

    Members of one `nn.ModuleList` or `nn.Sequential` that run one after another and map a stream
    to itself. Each is tried: zeros in what it writes must make it the identity, and the network
    without it must give what the network with these zeros gives.

    Args:
        model: the network; left as it is.
        example: one small batch.
        part: "block", or the "attention" or "mlp" half.

    Raises:
        ValueError: there are no such blocks, or none can be left out.
    """
    owners = {name: weight.owner for name, weight in weights_of(model).items()}
    names = found_blocks(model, owners, example)
    if not names:
        raise ValueError(
            "The model has no blocks: no nn.ModuleList or nn.Sequential whose members run one "
            "after another and map a stream to itself. Use Node() or a recipe for edges."
        )
    work = copied(model)
    found: list[Skippable] = []
    refused: dict[str, str] = {}
    known: dict[tuple[type, str], tuple[str, ...]] = {}
    with evaluating(work), torch.no_grad():
        calls = _calls(work, names, example)
        for name in names:
            block = work.get_submodule(name)
            kind = (type(block), name.rpartition(".")[0])
            writers = _writers(block, calls[name], known.get(kind))
            if writers is None:
                refused[name] = (
                    "it is not the identity when what it writes is zero: a norm behind the sum "
                    "acts again, or its input is not what it is added to"
                )
                continue
            known[kind] = writers
            own = _part_of(work, name, writers, part)
            if isinstance(own, str):
                refused[name] = own
            else:
                found.append(own)
    fine = []
    for block_part in found:
        why = _fails(model, block_part, part, example)
        if why is None:
            fine.append(block_part)
        else:
            refused[block_part.name] = why
    if not fine:
        raise ValueError(f"No block of the model can be left out ({listed(refused)}).")
    return tuple(fine), refused


def gone_parts(
    model: nn.Module, masks: Mapping[str, Tensor], part: Part, example: Batch
) -> tuple[Skippable, ...]:
    """The blocks (or halves) of a pruned network that its masks have emptied."""
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    found = []
    owners = {name: weight.owner for name, weight in weights_of(model).items()}
    for name in found_blocks(model, owners, example):
        own = tuple(w.removeprefix(f"{name}.") for w in empty if w.startswith(f"{name}."))
        block = _part_of(model, name, own, part) if own else ""
        if isinstance(block, Skippable):
            found.append(block)
    return tuple(found)


def zeros_of(model: nn.Module, parts: Sequence[Skippable]) -> dict[str, Tensor]:
    """Masks, False everywhere, of what these parts write to the stream."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return {w: torch.zeros(shapes[w], dtype=torch.bool) for part in parts for w in part.writers}


def without(
    model: nn.Module, parts: Sequence[Skippable], part: Part, example: Batch, *, rtol: float = 1e-4
) -> nn.Module:
    """A copy of a model whose parts write zeros, without them, verified equal.

    Raises:
        CompactionError: it differs or fails.
    """
    small = copied(model)
    drop(small, parts, part, example)
    verify_equal(model, small, example, kept={}, rtol=rtol)
    return small


def drop(model: nn.Module, parts: Sequence[Skippable], part: Part, example: Batch = None) -> None:
    """Take parts out of a model, in place: blocks out of their lists, halves by `Nothing`.

    Args:
        model: the network.
        parts: that go.
        part: what they are.
        example: one batch, from which the form of a half's outputs is read.
    """
    if part == "block":
        take_out(model, dict.fromkeys(p.name for p in parts))
        return
    owners = [owner for p in parts for owner in p.owners]
    take_out(model, dict(_forms(model, owners, example)))


def missing_of(
    model: nn.Module, masks: Mapping[str, Tensor], part: Part, example: Batch
) -> dict[str, int | None]:
    """What a compact network lacks, for `take_out`: blocks, and halves with their outputs."""
    gone = gone_parts(model, masks, part, example)
    if part == "block":
        return dict.fromkeys(p.name for p in gone)
    found: dict[str, int | None] = {}
    found.update(_forms(model, [owner for p in gone for owner in p.owners], example))
    return found


def take_out(model: nn.Module, missing: Mapping[str, int | None]) -> None:
    """Take blocks (None) and halves (the length of what they gave) out of a model, in place."""
    chains: dict[str, set[str]] = {}
    for name, outputs in missing.items():
        home, _, leaf = name.rpartition(".")
        if outputs is None:
            chains.setdefault(home, set()).add(leaf)
        else:
            setattr(model.get_submodule(home), leaf, Nothing(outputs))
    for chain, gone in chains.items():
        renumber(model, chain, gone)


def _part_of(model: nn.Module, name: str, writers: tuple[str, ...], part: Part) -> Skippable | str:
    """The block, or the half of it that is asked for; or why there is none."""
    chain = name.rpartition(".")[0]
    whole = tuple(f"{name}.{w}" for w in writers)
    if part == "block":
        return Skippable(name, chain, whole)
    wanted = part == "attention"
    own = tuple(w for w in whole if bool(ATTENTION.search(w.removeprefix(name))) == wanted)
    if not own:
        return f"it has no part that is its {part}"
    # The module around the one that owns the parameter; an expert's parameters are their own.
    owners = dict.fromkeys(
        owner if w.rpartition(".")[2] not in ("weight", "bias") else owner.rpartition(".")[0]
        for w in own
        for owner in (w.rpartition(".")[0],)
    )
    if name in owners:
        return f"its {part} is no module of its own that could be left out"
    if wanted and name.rpartition(".")[2] == "0" and hasattr(model, "generate"):
        return "the cache of keys and values counts positions by the first block's attention"
    return Skippable(name, chain, own, tuple(owners))


def _fails(model: nn.Module, part: Skippable, kind: Part, example: Batch) -> str | None:
    masked = copied(model)
    _zero(masked, part.writers)
    try:
        without(masked, [part], kind, example)
    except CompactionError as error:
        return f"without it the network is another: {str(error).split('. ')[0]}"
    return None


def _zero(model: nn.Module, names: Sequence[str]) -> None:
    known = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            known[name].zero_()


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _calls(model: nn.Module, names: Sequence[str], example: Batch) -> dict[str, Arguments]:
    """The arguments of each block's call, copied before it can change them."""
    found: dict[str, Arguments] = {}

    def note(name: str, module: nn.Module, args: Any, keywords: Any) -> None:
        found[name] = copy.deepcopy((args, keywords))

    with _hooks(model, names, note):
        run(model, example)
    return found


@contextmanager
def _hooks(model: nn.Module, names: Sequence[str], note: Callable[..., None]) -> Iterator[None]:
    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forms(model: nn.Module, names: Sequence[str], example: Batch) -> dict[str, int]:
    """How many values each module gives; 0 where it gives a tensor."""
    found: dict[str, int] = {}

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        found[name] = len(output) if isinstance(output, list | tuple) else 0

    handles = [
        model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names
    ]
    try:
        run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _writers(
    block: nn.Module, call: Arguments, guess: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """The fewest parameters whose zeros make a block the identity; None if none do.

    Weights are tried with their biases, in order; those that may keep their values, keep them.
    """
    known = dict(block.named_parameters())
    saved = {name: parameter.detach().clone() for name, parameter in known.items()}

    def is_identity(zeros: Sequence[str]) -> bool:
        for name in zeros:
            known[name].zero_()
        args, keywords = copy.deepcopy(call)
        try:
            given = tensors_of(block(*args, **keywords))
            taken = tensors_of(call)
            return bool(given) and given[0].shape == taken[0].shape and given[0].equal(taken[0])
        finally:
            for name in zeros:
                known[name].copy_(saved[name])

    if guess is not None and set(guess) <= known.keys() and is_identity(guess):
        return guess
    weights = {name: _with_bias(name, known) for name in known if known[name].ndim >= 2}
    chosen = list(weights)
    if not is_identity([n for w in chosen for n in weights[w]]):
        return None
    for name in list(weights):
        rest = [w for w in chosen if w != name]
        if is_identity([n for w in rest for n in weights[w]]):
            chosen = rest
    return tuple(n for w in chosen for n in weights[w]) or None


def _with_bias(name: str, known: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    home, _, leaf = name.rpartition(".")
    biases = (f"{home}.bias" if leaf == "weight" else "", f"{name}_bias")
    return (name, *(b for b in biases if b in known))

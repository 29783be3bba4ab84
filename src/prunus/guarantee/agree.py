"""Whether the stages of which bounds are made compute what the two networks compute."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float64
from torch import Generator, Tensor, nn

from prunus.guarantee.criteria import dtype_of, outputs_of
from prunus.guarantee.extract import Extracted
from prunus.guarantee.rules import AVAILABLE, Unsupported
from prunus.rng import generator_for
from prunus.theory.gap.rounding import rounding_at
from prunus.theory.gap.stages import run

__all__ = ["agree", "agree_in_own_dtype", "probes"]

ROWS = 64  # of the data, on which float64 copies of the networks run too
DOUBLE = 2.0**-53
WORDS = ("dense", "pruned")


def probes(centre: Float64[Tensor, "1 ..."], radius: float) -> Float64[Tensor, "points ..."]:
    """The centre of a ball and random points of it, near, half way and on its sphere."""
    generator: Generator = generator_for(0, "probes")
    ways = torch.randn(24, *centre.shape[1:], dtype=torch.float64, generator=generator)
    lengths = ways.flatten(1).norm(dim=1).clamp_min(1e-300)
    reach = radius * torch.tensor([1.0, 0.5, 0.01], dtype=torch.float64).repeat(8) / lengths
    points = centre + ways * reach.reshape(-1, *[1] * (centre.ndim - 1))
    return torch.cat([centre, points])


def agree(
    found: Extracted, model: nn.Module, pruned: nn.Module, points: Float64[Tensor, "points ..."]
) -> None:
    """Run float64 copies of both networks and compare them with the stages.

    Rounding then hides nothing larger than about 10⁻¹³: a setting that no rule knows, a function
    held as an attribute, a hook or an operation in place shows wherever the points reach it.

    Raises:
        Unsupported: they differ; the module where they first part is named.
    """
    for network, word in zip((model, pruned), WORDS, strict=True):
        thin = word == "pruned"
        double = _in_double(network)
        expected = run(found.stages, points, pruned=thin).flatten(1)
        allowed = 2 * rounding_at(found.stages, points, DOUBLE, pruned=thin) + 1e-300
        actual = outputs_of(double, points)
        excess = _excess(expected, actual, allowed)
        if excess is not None:
            where = _first_part(found, double, points, thin)
            raise Unsupported(
                f"{where} of the {word} network does not compute what its rule says: {excess}. "
                f"Something outside its settings changes it (a function, a hook, an operation in "
                f"place), so no bound holds. {AVAILABLE}"
            )


def agree_in_own_dtype(
    found: Extracted,
    network: nn.Module,
    inputs: Float64[Tensor, "samples ..."],
    outputs: Float64[Tensor, "samples outputs"],
    unit: float,
    *,
    largest: float,
    pruned: bool,
    entry: float = 0.0,
) -> None:
    """Compare a network's own outputs with the stages, as far as its rounding allows.

    Args:
        found: the stages.
        network: for messages.
        inputs: as the dense network read them.
        outputs: of the network on them.
        unit: roundoff with which it computes.
        largest: number that it can hold.
        pruned: it is the pruned one.
        entry: relative rounding of its inputs.

    Raises:
        Unsupported: they differ by more than the counted rounding.
    """
    expected = run(found.stages, inputs, pruned=pruned).flatten(1)
    allowed = rounding_at(found.stages, inputs, unit, pruned=pruned, entry=entry, largest=largest)
    allowed = allowed + rounding_at(found.stages, inputs, DOUBLE, pruned=pruned) + 1e-300
    excess = _excess(expected, outputs, allowed)
    if excess is not None:
        raise Unsupported(
            f"the {WORDS[pruned]} network in {dtype_of(network)} does not compute what its float64 "
            f"copy does: {excess}. No bound holds. {AVAILABLE}"
        )


def _excess(expected: Tensor, actual: Tensor, allowed: Tensor) -> str | None:
    """By how much outputs differ beyond what is allowed, in words; None where they do not."""
    if expected.shape != actual.shape:
        return f"outputs of shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    apart = (expected - actual).norm(dim=1)
    bad = ~((apart <= allowed) | allowed.isinf())  # outputs beyond the numbers are NaN
    if not bool(bad.any()):
        return None
    worst = int(torch.where(bad, apart.nan_to_num(nan=torch.inf), -1.0).argmax())
    return (
        f"outputs that are {float(apart[worst]):.3g} apart, where rounding explains "
        f"{float(allowed[worst]):.3g}"
    )


def _in_double(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network).cpu().double()
    except Exception as error:  # whatever a module of somebody else raises
        raise Unsupported(
            f"{type(network).__name__} cannot be copied to be compared with its rules "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). {AVAILABLE}"
        ) from None


def _first_part(found: Extracted, network: nn.Module, x: Tensor, pruned: bool) -> str:
    """The first module whose output is not what its stages say, in words."""
    last = "the input"
    with _recorded(network, {name for name, _, _ in found.places}) as calls:
        outputs_of(network, x)
    for (name, before, after), (called, given, result) in zip(found.places, calls, strict=False):
        if name != called:
            return f"{called!r}, which the graph does not call there,"
        kind = type(network.get_submodule(name)).__name__
        shown = f"{name!r} ({kind})" if name else kind
        if not _close(run(before, x, pruned=pruned), given):
            return f"what lies between {last} and {shown}"
        if not _close(run(after, x, pruned=pruned), result):
            return shown
        last = shown
    return f"what lies behind {last}"


def _close(expected: Tensor, actual: Any) -> bool:
    if not isinstance(actual, Tensor) or expected.numel() != actual.numel():
        return False
    apart = (expected.flatten() - actual.flatten().double()).norm()
    return bool(apart <= 1e-9 * (expected.norm() + 1e-300) + 1e-250)


@contextmanager
def _recorded(network: nn.Module, names: set[str]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Inputs and outputs of the modules' calls, in order, kept by clone."""
    calls: list[Any] = []
    inputs: list[Any] = []

    def before(module: nn.Module, args: Any) -> None:
        del module
        inputs.append(args[0].clone() if args and isinstance(args[0], Tensor) else None)

    def after(name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            kept = output.clone() if isinstance(output, Tensor) else output
            calls.append((name, inputs.pop(), kept))

        return note

    handles = []
    for name, module in network.named_modules():
        if name in names:
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after(name)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()

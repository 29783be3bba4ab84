"""Two networks compared on an example; where they differ, the first layer that does is named."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.ambient import unless_interrupted
from prunus.coupling.weights import LAYERS
from prunus.dispatch import Ran, followed
from prunus.hints import Batch
from prunus.surgery.norms import with_statistics
from prunus.surgery.readings import other_lengths, run

PIECE = 2**16  # numbers that are compared at a time, as a cache holds


class CompactionError(RuntimeError):
    """A smaller network could not be made, or is not equal to the one it stands for."""


class Reference:
    """What a network with zeros gives on an example, run once for all that is compared with it."""

    def __init__(self, model: nn.Module, example: Batch) -> None:
        self._model, self._example = model, example
        self._found: tuple[dict[str, list[int]], Any, float] | None = None

    def given(self, statistics: Mapping[str, Tensor]) -> tuple[Any, float]:
        """The output, and the machine epsilon of the coarsest type that a layer's outputs have.

        Args:
            statistics: for each norm that takes its statistics over less, the positions that stay.
        """
        asked = {name: index.tolist() for name, index in statistics.items()}
        if self._found is None or self._found[0] != asked:
            with with_statistics(self._model, statistics):
                self._found = (asked, *_run_noting(self._model, self._example))
        return self._found[1:]


def verify_equal(
    model: nn.Module,
    small: nn.Module,
    example: Batch,
    *,
    kept: Mapping[str, Tensor],
    rtol: float,
    statistics: Mapping[str, Tensor] | None = None,
    running: Callable[[nn.Module, Any], Any] = run,
    reference: Reference | None = None,
    got: Any = None,
) -> float | None:
    """Compare outputs on the example; raise CompactionError unless they agree.

    Args:
        model: the network with zeros.
        small: its smaller copy.
        example: one batch.
        kept: for each layer that has lost outputs, the positions of those it still has.
        rtol: largest accepted error relative to max|output|; see `compact`.
        statistics: for each norm that takes its statistics over less than before, the positions
            that stay; the network with zeros runs with these statistics too.
        running: runs the smaller network on the example.
        reference: what the network with zeros gives on the example, where it may have run already.
        got: what the smaller one gave by `running`, as it is now; it does not run again then.

    Returns:
        where statistics changed ‖small(x) − model(x)‖ / ‖model(x)‖, the model as it is; else None.
    """
    statistics = statistics or {}
    expected, coarsest = (reference or Reference(model, example)).given(statistics)
    try:
        got = running(small, example) if got is None else got
    except Exception as error:  # whatever the user's forward raises at a width it does not expect
        raise CompactionError(
            f"The smaller network fails {_place(small, example)} ({str(error).strip()}). A width "
            f"is probably written in the forward code, as in x.view(-1, 400): take it from the "
            f"tensor, as in x.flatten(1), or exclude the layers whose outputs arrive there."
        ) from error
    wrong = _difference(expected, got, rtol, coarsest)
    if wrong is None:
        _verify_lengths(model, small, example, statistics, rtol, coarsest)
        return relative_change(run(model, example), got) if statistics else None
    noise = _other_noise(model, small, example)
    if noise is not None:
        raise CompactionError(
            f"The smaller network cannot be compared with the masked one: {noise}. Exclude the "
            f"layers whose widths the numbers of draws follow."
        )
    with with_statistics(model, statistics):
        before = _outputs(model, example)
    after = _outputs(small, example)
    for name, value in before.items():
        if name not in after:
            continue
        layer = model.get_submodule(name)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        axis = -1 if isinstance(layer, nn.Linear) else value.ndim - weight.ndim + 1
        if name in kept:
            value = value.index_select(axis, kept[name].to(value.device))
        if _difference(value, after[name], rtol, coarsest) is not None:
            raise CompactionError(
                f"The smaller network is not equal to the masked one: {wrong}; layer `{name}` is "
                f"the first whose outputs differ. The forward code probably picks channels by "
                f"number before it; exclude the layers whose outputs arrive there."
            )
    raise CompactionError(
        f"The smaller network is not equal to the masked one: {wrong}, although all its layers "
        f"agree. The forward code probably picks channels by number after the last layer."
    )


def _verify_lengths(
    model: nn.Module,
    small: nn.Module,
    example: Batch,
    statistics: Mapping[str, Tensor],
    rtol: float,
    coarsest: float,
) -> None:
    """Compare on shorter and on padded sequences too, where the model takes them.

    A width that equals the length of the example's sequences would hide errors.
    """
    for what, other in other_lengths(example):
        try:
            with with_statistics(model, statistics):
                expected = run(model, other)
        except Exception:  # the user's forward does not take such sequences
            continue
        try:
            wrong = _difference(expected, run(small, other), rtol, coarsest)
        except Exception as error:
            wrong = f"it fails ({str(error).strip()})"
        if wrong is not None:
            raise CompactionError(
                f"The smaller network is not equal to the masked one on {what}: {wrong}, although "
                f"it is on the example. The forward code probably writes a width down."
            )


@dataclass(frozen=True, eq=False)
class _Draws:
    """Follows what draws random numbers, and of which shapes."""

    found: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def ran(self, call: Ran) -> None:
        """Note an operation that has drawn."""
        if call.drew:
            drawn = _tensors(call.result)[0]
            self.found.append((call.schema.name.removesuffix("_"), tuple(drawn.shape)))


def _other_noise(model: nn.Module, small: nn.Module, example: Batch) -> str | None:
    """Where the two networks first draw random numbers of other shapes, or None.

    Both start from one state, so that they draw the same numbers as long as the shapes agree.
    """
    found = []
    for network in (model, small):
        draws = _Draws()
        with followed(draws):
            run(network, example)
        found.append(draws.found)
    for (name, wide), (other, narrow) in zip(*found, strict=False):
        if (name, wide) != (other, narrow):
            return (
                f"where that draws random numbers of shape {wide} by `{name}`, this draws others, "
                f"of shape {narrow} by `{other}`"
            )
    if len(found[0]) != len(found[1]):
        return f"it draws random numbers {len(found[1])} times instead of {len(found[0])}"
    return None


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def relative_change(before: Any, after: Any) -> float:
    """‖after − before‖ / ‖before‖ over all floating outputs together."""
    pairs = [
        (torch.split(one.flatten(), PIECE), torch.split(other.expand_as(one).flatten(), PIECE))
        for one, other in zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True)
        if isinstance(one, Tensor) and one.is_floating_point()
    ]
    moved = size = 0.0
    for one, other in (parts for pair in pairs for parts in zip(*pair, strict=True)):
        old = one.double()
        change = other.double() - old
        size += float(torch.dot(old, old))
        moved += float(torch.dot(change, change))
    return (moved / size) ** 0.5 if size else (0.0 if moved == 0 else float("inf"))


def _run_noting(model: nn.Module, example: Batch) -> tuple[Any, float]:
    """The output, and the machine epsilon of the coarsest type that a layer's outputs have."""
    coarsest = 0.0

    def hook(_: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal coarsest
        coarsest = max([coarsest, *(_eps(tensor.dtype) for tensor in _tensors(output))])

    with _hooked((module, hook) for module in model.modules() if isinstance(module, LAYERS)):
        return run(model, example), coarsest


def _outputs(model: nn.Module, example: Batch) -> dict[str, Tensor]:
    """The outputs of all linear and convolution layers in order of execution.

    Classes of the caller's own may give a tuple or a mapping; what that holds is not known.
    """
    outputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.detach()

        return hook

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LAYERS)]
    with _hooked((module, recorder(name)) for name, module in layers):
        run(model, example)
    return outputs


def _place(model: nn.Module, example: Batch) -> str:
    """Where a model fails on the example: in which childless module, or after which."""
    called, finished = list[str](), list[str]()

    def announcer(name: str, names: list[str]) -> Any:
        def hook(_: nn.Module, *values: Any) -> None:
            names.append(name)

        return hook

    ends = [(n, m) for n, m in model.named_modules() if n and not any(m.children())]
    handles = [m.register_forward_pre_hook(announcer(n, called)) for n, m in ends]
    with _hooked((module, announcer(name, finished)) for name, module in ends):
        try:
            run(model, example)
        except Exception as error:  # as it did before
            unless_interrupted(error)
        finally:
            for handle in handles:
                handle.remove()
    where = "in" if called[-1:] != finished[-1:] else "after"
    return f"{where} layer `{called[-1]}`" if called else "before its first layer"


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Forward hooks, for as long as the block is open."""
    handles = []
    try:
        for module, hook in hooks:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(expected: Any, got: Any, rtol: float, coarsest: float) -> str | None:
    """What is wrong with `got`, None if it equals `expected` within the tolerance."""
    pairs = [_tensors(value) for value in (expected, got)]
    if len(pairs[0]) != len(pairs[1]):
        return f"{len(pairs[1])} outputs instead of {len(pairs[0])}"
    for one, other in zip(*pairs, strict=True):
        if one.shape != other.shape:
            return f"an output of shape {tuple(other.shape)} instead of {tuple(one.shape)}"
        if one.numel() == 0:
            continue
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return "integer outputs differ"
            continue
        scale, error = one.abs().max().item(), (one - other).abs().max().item()
        if not math.isfinite(scale):
            return f"the outputs are {scale} on the data, before anything is cut"
        if not error <= tolerance(one.dtype, rtol, coarsest) * scale:
            return f"error {error:.3g} where outputs reach {scale:.3g}"
    return None


def tolerance(dtype: torch.dtype, rtol: float, coarsest: float) -> float:
    """The accepted relative error: `rtol`, but what the precision can show and should hold.

    Args:
        dtype: of the values compared.
        rtol: what single precision should hold.
        coarsest: machine epsilon of the coarsest layer, whose rounding reaches finer values too.
    """
    own = _eps(dtype)
    if max(own, coarsest) <= torch.finfo(torch.float64).eps:
        return min(rtol, 1e-9)
    return max(rtol, 8 * own if dtype.itemsize < 4 else coarsest)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0

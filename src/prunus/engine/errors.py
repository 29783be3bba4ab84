"""Layer errors without Gram matrices: the data run once more, through what each layer has lost."""

import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from prunus.calibration.batches import Fingerprint, call, first_of, parts, to_device
from prunus.calibration.layout import layout_of
from prunus.calibration.padding import Padding, padding_of
from prunus.engine.job import Job
from prunus.engine.statistics import counted
from prunus.hints import Arguments, Keywords
from prunus.modes import evaluating
from prunus.parts import NODES
from prunus.progress import progress_bar
from prunus.ranking import marked_rows
from prunus.result import LayerResult
from prunus.rows import RowSet
from prunus.squares import square_sum
from prunus.views import ConvView, batched, known_exactly
from prunus.weights import Weight, weights_at

__all__ = ["Measured", "measure_errors", "seen_whole", "shows_its_outputs"]

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PIECE_BYTES = 2**22  # of outputs that are looked at as soon as they are made
FINITE = "received NaN or infinite inputs. Check the data and the layers before."


@dataclass(frozen=True, eq=False)
class Measured:
    """The results with their errors, and what the pass over the data has seen of these."""

    results: dict[str, LayerResult]
    fingerprint: str
    rows: RowSet


def shows_its_outputs(weight: Weight) -> bool:
    """True for our linear layers and convolutions, whose forward is W x + b and nothing else."""
    return weight.source.alone and type(weight.module) in PLAIN and known_exactly(weight.module)


def seen_whole(job: Job, model: nn.Module, names: Collection[str]) -> bool:
    """True where every layer shows its outputs and runs on the example already."""
    if not all(map(shows_its_outputs, weights_at(model, names).values())):
        return False
    if job.sizes.order and set(names) <= set(job.sizes.order):  # the dense network ran them all
        return True
    with counted(model, names) as calls, evaluating(model), torch.no_grad():
        call(model, to_device(first_of(job.example, 2), job.device))
    return all(calls.values())


def measure_errors(
    job: Job,
    before: nn.Module,
    results: Mapping[str, LayerResult],
    *,
    measure: bool = True,
) -> Measured:
    """E‖(W − W′) x + b − b′‖² of every layer, over the outputs that count, in one pass.

    The products are those of the network's own type, the squares are summed in float64: beside an
    error from a Gram matrix, the rounding of single products stays (1e-7 of each in float32).

    Args:
        job: whose data run.
        before: the network before the step, with its weights of then.
        results: the layers, with their weights of now.
        measure: False reads the data for their fingerprint alone; errors stay None.

    Raises:
        ValueError: the data are empty or unfit, or an input is NaN or infinite; the layer is named.
        Unclear: a mask does not say what of a layer is padding.
    """
    assert job.batches is not None  # the caller has data
    fingerprint, tally = Fingerprint(), _Tally()
    lost: dict[str, tuple[Weight, nn.Module]] = {}
    columns: dict[str, Tensor] = {}
    if measure:
        if job.recipe.units == NODES:  # removed outputs are no error
            columns = {name: marked_rows(result.mask) for name, result in results.items()}
        lost = {
            name: _lost(place, results[name], columns.get(name))
            for name, place in weights_at(before, results).items()
        }
    with progress_bar("measuring layers", None, progress=job.progress) as advance:
        first, numbers = to_device(next(parts(job.batches.peek())), job.device), itertools.count()
        layout = layout_of(before, first) if measure else None
        running = evaluating(before) if measure else nullcontext()
        with running, torch.no_grad(), _watching(lost, columns, tally):
            for batch in job.batches:
                for part in parts(batch):
                    fingerprint.add(part)
                    if measure:
                        on_device = to_device(part, job.device)
                        tally.padding = padding_of(on_device, layout)
                        call(before, on_device, next(numbers))
                advance(1)
    done = {
        name: replace(result, error=tally.mean(name), power=tally.power(name))
        if measure
        else result
        for name, result in results.items()
    }
    return Measured(results=done, fingerprint=fingerprint.value, rows=fingerprint.rows)


class _Tally:
    """Sums of squares by layer, and how many vectors they are of."""

    def __init__(self) -> None:
        self.padding: Padding | None = None
        self.sums: dict[str, float] = {}
        self.powers: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.hidden: set[str] = set()  # layers some call of which did not show what they read

    def add(self, weight: Weight, lost: nn.Module, inputs: Tensor) -> None:
        """Take in what a layer answers otherwise."""
        name, total = weight.name, 0.0
        for piece in self._pieces(weight, inputs):
            values, axis = self._counting(weight, lost.forward(piece))
            total += square_sum(values)
            self.counts[name] = self.counts.get(name, 0) + values.numel() // values.shape[axis]
        if not math.isfinite(total) and not bool(torch.isfinite(inputs).all()):
            raise ValueError(f"Layer {name!r} {FINITE}")
        self.sums[name] = self.sums.get(name, 0.0) + total

    def add_power(self, weight: Weight, outputs: Tensor, kept: Tensor | None) -> None:
        """Take in what a layer answers, of which the bias is taken off."""
        (values, axis), bias = self._counting(weight, outputs), weight.bias()
        if kept is not None:
            at = kept.nonzero().flatten().to(values.device)
            values = values.index_select(axis, at)
            bias = None if bias is None else bias[at.to(bias.device)]
        had = self.powers.get(weight.name, 0.0)
        self.powers[weight.name] = had + square_sum(values, bias, axis)

    def _pieces(self, weight: Weight, inputs: Tensor) -> Iterator[Tensor]:
        """The inputs in samples whose outputs stay in the cache; all at once beside a mask."""
        axis = _channels(weight)
        if self.padding is not None or inputs.ndim < 2:
            yield inputs
            return
        if axis == 1:
            inputs = batched(weight.module, inputs)
        width = max(1.0, len(weight.matrix()) / inputs.shape[axis])
        size = inputs[:1].numel() * inputs.element_size() * width
        yield from torch.split(inputs, max(1, int(PIECE_BYTES / max(size, 1))))

    def _counting(self, weight: Weight, outputs: Tensor) -> tuple[Tensor, int]:
        """The outputs that are not padding, and the axis along which a vector lies."""
        axis = _channels(weight)
        if self.padding is not None:
            channels = partial(weight.view.channels, weight.module, outputs)
            real = self.padding.real(weight.name, channels)
            if real is not None:
                return real, real.ndim - 1
        if axis == 1:
            return batched(weight.module, outputs), 1
        return outputs, outputs.ndim - 1

    def power(self, name: str) -> float | None:
        """E‖W x‖² over the same vectors and outputs."""
        count = 0 if name in self.hidden else self.counts.get(name, 0)
        return self.powers[name] / count if count and name in self.powers else None

    def mean(self, name: str) -> float | None:
        """Over all vectors; None where none came."""
        count = 0 if name in self.hidden else self.counts.get(name, 0)
        return self.sums[name] / count if count else None


def _channels(weight: Weight) -> int:
    """The axis of outputs along which a vector lies."""
    return 1 if isinstance(weight.view, ConvView) else -1


def _lost(weight: Weight, result: LayerResult, kept: Tensor | None) -> tuple[Weight, nn.Module]:
    """The weight, and a module without hooks that computes (W − W′) x + b − b′ where `kept`."""
    own, bias = weight.module, weight.bias()
    module = copy.copy(own)
    module.__dict__ = {
        **own.__dict__,
        **{key: type(hooks)() for key, hooks in own.__dict__.items() if key.endswith("_hooks")},
        "_parameters": {},
    }
    values = weight.parameter.detach()
    gone = weight.matrix() - result.weight.to(values)
    shift = None
    if bias is not None and result.bias is not None:
        shift = bias - result.bias.to(bias)
    if kept is not None:
        gone.index_fill_(0, (~kept).nonzero().flatten().to(gone.device), 0)
        shift = None if shift is None else shift.masked_fill(~kept, 0)
    module._parameters = {
        "weight": nn.Parameter(weight.view.parameter(own, gone), requires_grad=False),
        "bias": None if shift is None else nn.Parameter(shift, requires_grad=False),
    }
    return weight, module


@contextmanager
def _watching(
    lost: Mapping[str, tuple[Weight, nn.Module]],
    columns: Mapping[str, Tensor],
    tally: _Tally,
) -> Iterator[None]:
    """While this is open, calls of the layers go through what they have lost as well."""
    handles = []

    def before(name: str) -> Callable[[nn.Module, Arguments, Keywords], None]:
        weight, module = lost[name]

        def hook(_: nn.Module, args: Arguments, kwargs: Keywords) -> None:
            inputs = weight.inputs(args, kwargs)
            if inputs is None:
                tally.hidden.add(name)
            else:
                tally.add(weight, module, inputs)

        return hook

    def after(name: str) -> Callable[[nn.Module, Arguments, Tensor], None]:
        def hook(_: nn.Module, args: Arguments, output: Tensor) -> None:
            if name not in tally.hidden:
                tally.add_power(lost[name][0], output, columns.get(name))

        return hook

    try:
        for name, (weight, _) in lost.items():
            handles.append(weight.module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(weight.module.register_forward_hook(after(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()

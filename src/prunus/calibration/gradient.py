"""One batch's backward passes, and the sums of all statistics that read them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from prunus.ambient import mutable
from prunus.calibration.batches import call, size_of
from prunus.calibration.classes import by_sample, column_slopes
from prunus.calibration.forward import gradients, loss_of, tensor_of
from prunus.calibration.padding import Padding
from prunus.calibration.signals import output_signals, softmax_signals
from prunus.calibration.slopes import Calls, Gates, gated, recorded, sample_slopes
from prunus.calibration.statistics import ClassSlopes, Matrix, Signal, Statistic
from prunus.calibration.sums import Sums
from prunus.hints import Batch
from prunus.layer import Layer
from prunus.weights import Weight

__all__ = ["BACKWARD", "Backward"]

BACKWARD = ("gradient", "slopes", "classes")  # the sources that need a backward pass
Columns = Mapping[str, Int[Tensor, "classes columns"]]
Totals = dict[str, dict[str, Tensor]]  # by layer or group, and statistic


@dataclass(frozen=True, eq=False)
class Backward:
    """What the backward passes of every batch are for.

    Attributes:
        weights: of the layers, by name.
        layers: the layers without statistics.
        statistics: those that read gradients, by name.
        groups: {group: {consumer: columns of each class}} for statistics of channel classes.
        loss: see `calibrate`.
        generators: of the random signs, by signal.
    """

    weights: Mapping[str, Weight]
    layers: Mapping[str, Layer]
    statistics: Mapping[str, Statistic]
    generators: Mapping[Signal, Generator]
    groups: Mapping[str, Columns] = field(default_factory=dict)
    loss: Any = None

    def sums(
        self, model: nn.Module, batch: Batch, number: int, padding: Padding | None = None
    ) -> tuple[Totals, Totals]:
        """Sums over the samples of one batch: of the layers, and of the groups of classes.

        The model runs once; parameters' own `.grad` stay as they are. A loss that is a mean over
        the samples adds up to the same however it is batched.

        Args:
            model: in evaluation mode.
            batch: one batch on the model's device.
            number: of the batch, among its data.
            padding: of the batch; outputs there weigh nothing.

        Raises:
            ValueError: a gradient is NaN or infinite (the layer is named), or no loss applies.
        """
        parameters = [weight.parameter for weight in self.weights.values()]
        flags = [w.requires_grad for w in parameters]
        size = size_of(batch) or 1
        signals = self._signals()
        plain = [s for s in self.statistics.values() if s.reads.source == "gradient"]
        found: Totals = {}
        classes: Totals = {}
        for w in parameters:
            w.requires_grad_(True)
        try:
            wanted = self.weights if signals else {}
            # Networks written for inference overwrite what their gradients need.
            with (
                mutable(),
                torch.enable_grad(),
                recorded(wanted) as calls,
                gated(self._consumers()) as gates,
            ):
                output = call(model, batch, number)
                value = loss_of(output, batch, self.loss) if plain or "loss" in signals else None
                if plain and value is not None:
                    grads = gradients(value, parameters, retain_graph=bool(signals))
                    for (name, weight), w, g in zip(
                        self.weights.items(), parameters, grads, strict=True
                    ):
                        matrix = size * weight.matrix(torch.zeros_like(w) if g is None else g).to(
                            torch.float64
                        )
                        found[name] = {
                            s.name: s.add(None, Matrix(matrix), self.layers[name]) for s in plain
                        }
                passes: list[tuple[Signal, Tensor, Tensor | None]] = []
                for signal in signals:
                    if signal == "loss":
                        assert value is not None  # asked for above
                        passes.append((signal, value * size, None))
                        continue
                    answer = tensor_of(output)
                    if bool(torch.isnan(answer).any()):  # a ReLU's slope would hide it
                        raise ValueError(
                            "The model's output is NaN on the data. Check the data and the model."
                        )
                    vectors = ROOTS[signal](answer, batch, self.generators[signal], padding)
                    passes += [(signal, answer, vector) for vector in vectors]
                for place, one in enumerate(passes):
                    last = place + 1 == len(passes)
                    columns = self._send_back(calls, gates, *one, size, found, last=last)
                    self._add_classes(one[0], columns, classes)
        finally:
            for w, flag in zip(parameters, flags, strict=True):
                w.requires_grad_(flag)
        for name, sums in [*found.items(), *classes.items()]:
            for total in sums.values():
                if not bool(torch.isfinite(total).all()):
                    raise ValueError(
                        f"Layer {name!r} has NaN or infinite gradients. Check the data and the "
                        f"loss."
                    )
        return found, classes

    def _signals(self) -> list[Signal]:
        read = [
            s.reads.signal
            for s in self.statistics.values()
            if s.reads.source in ("slopes", "classes")
        ]
        return list(dict.fromkeys(read))

    def _send_back(
        self,
        calls: Calls,
        gates: Gates,
        signal: Signal,
        target: Tensor,
        vector: Tensor | None,
        size: int,
        found: Totals,
        *,
        last: bool,
    ) -> dict[str, Tensor]:
        """One backward pass: what is summed joins that of the batch.

        Returns:
            {consumer: slopes along its columns, sample by sample}, where classes are read.
        """
        ran = [name for name in self.weights if calls[name]]
        outputs = [out for name in ran for _, out in calls[name]]
        ones = [one for own in gates.values() for one in own]
        if not outputs and not ones:  # no module shows the outputs of one weight alone
            return {}
        grads = gradients(target, [*outputs, *ones], vector, retain_graph=not last)
        slopes = iter(grads)
        own = self._reading("slopes", signal)
        consumers = {name for group in self.groups.values() for name in group}
        if not self._reading("classes", signal):
            consumers.clear()
        columns: dict[str, Tensor] = {}
        for name in ran:
            pairs = [
                (given, torch.zeros_like(out) if slope is None else slope)
                for (given, out), slope in zip(calls[name], slopes, strict=False)
            ]
            layer, part = self.layers[name], Sums()
            shares = []
            if own or name in consumers:
                for reading in sample_slopes(self.weights[name], pairs, size):
                    for s in own:
                        part.totals[s.name] = s.add(part.totals.get(s.name), reading, layer)
                    if name in consumers:
                        shares.append(column_slopes(reading, layer))
            _join(found, name, part, own)
            if shares:
                columns[name] = torch.cat(shares)
        for name, own_gates in gates.items() if consumers else ():
            for one in own_gates:
                slope = next(slopes)
                share = by_sample(name, torch.zeros_like(one) if slope is None else slope, size)
                columns[name] = columns[name] + share if name in columns else share
        return columns

    def _consumers(self) -> dict[str, Weight]:
        """The layers that read classes, where statistics of classes are asked for."""
        if all(s.reads.source != "classes" for s in self.statistics.values()):
            return {}
        names = dict.fromkeys(name for places in self.groups.values() for name in places)
        return {name: self.weights[name] for name in names}

    def _add_classes(self, signal: Signal, columns: Mapping[str, Tensor], classes: Totals) -> None:
        """Columns of all consumers of a class add up before anything is squared."""
        wanted = self._reading("classes", signal)
        for group, places in self.groups.items():
            here = [name for name in places if name in columns]
            if not here or not wanted:
                continue
            parts = [columns[n][:, places[n].to(columns[n].device)].sum(2) for n in here]
            values = torch.stack([part.to(parts[0].device) for part in parts]).sum(0)
            one = Sums()
            for s in wanted:
                one.totals[s.name] = s.add(None, ClassSlopes(values), self.layers[here[0]])
            _join(classes, group, one, wanted)

    def _reading(self, source: str, signal: Signal) -> list[Statistic]:
        return [
            s
            for s in self.statistics.values()
            if s.reads.source == source and s.reads.signal == signal
        ]


def _join(found: Totals, name: str, part: Sums, statistics: list[Statistic]) -> None:
    """Merge the sums of one pass with those of the passes before."""
    whole = Sums(totals=found.setdefault(name, {}))
    for s in statistics:
        if s.name in part.totals:
            whole.put(s, part.totals[s.name])


def _squares(
    output: Tensor, batch: Batch, generator: Generator, padding: Padding | None = None
) -> list[Tensor]:
    """Signals whose squares add up to the second derivative of Σ (F − y)², which is 2."""
    return [math.sqrt(2) * signal for signal in output_signals(output, batch, generator, padding)]


ROOTS: dict[Signal, Callable[[Tensor, Any, Generator, Padding | None], list[Tensor]]] = {
    "output": output_signals,
    "softmax": softmax_signals,
    "square": _squares,
}

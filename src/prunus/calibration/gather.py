"""Hooks that turn the calls of layers into sums; they always go, and never keep what may change."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Generator, Tensor, nn

from prunus.ambient import transformed
from prunus.calibration.leading import Leading
from prunus.calibration.padding import Padding
from prunus.calibration.statistics import Pair, Source, Statistic, Vectors
from prunus.calibration.sums import Sums
from prunus.calibration.vectors import block_of, responses_of, vectors_of
from prunus.layer import Layer
from prunus.weights import Weight

__all__ = ["Gatherer", "gathering", "watched"]

Take = Callable[[Weight, Tensor], None]


class Gatherer:
    """The sums of what reads the vectors of layers, while a model runs.

    Attributes:
        padding: of the batch that is about to run, or None; set it before.
        layers: without statistics, by name.
        statistics: by name.
        sums: {name: sums} of the layers that ran.
        blind: names of layers some call of which did not show what the weight multiplies.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        statistics: Mapping[str, Statistic],
        drawn: Mapping[str, tuple[int, Generator]] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """`shared`: layers that take the same inputs have one sum, whole after `close`."""
        self.padding: Padding | None = None
        self.sums: dict[str, Sums] = {}
        self.blind: set[str] = set()
        self.layers = layers
        self.statistics = statistics
        self._drawn = drawn or {}
        self._leading = Leading(self.sums, self.reading("inputs")) if shared else None

    def reading(self, source: Source) -> list[Statistic]:
        """The statistics that read so."""
        return [s for s in self.statistics.values() if s.reads.source == source]

    def inputs(self, weight: Weight, inputs: Tensor) -> None:
        """Take in what a layer is called with."""
        name = weight.name
        sums = self.sums.setdefault(name, Sums())
        wanted = self.reading("inputs")
        leading = self._leading if wanted else None
        if leading is not None:
            if leading.met(weight, inputs, self.padding):
                return
            sums = leading.place(weight, inputs, self.padding)
        if wanted:
            drawn = self._drawn.get(name)
            for values in vectors_of(weight, inputs, self.padding, drawn):
                if len(values):  # not all of it was padding
                    self._add(sums, name, "inputs", wanted, block_of(name, values))

    def missed(self, weight: Weight) -> None:
        """Note a call that did not show what the weight multiplies."""
        self.sums.setdefault(weight.name, Sums())
        self.blind.add(weight.name)

    def close(self) -> None:
        """Complete the sums, and drop what was summed over a part of the calls alone."""
        if self._leading is not None:
            self._leading.close()
        for name in self.blind:
            sums = self.sums[name]
            for source in ("inputs", "outputs", "pair"):
                sums.counts.pop(source, None)
                for s in self.reading(source):
                    sums.totals.pop(s.name, None)

    def outputs(self, weight: Weight, outputs: Tensor) -> None:
        """Take in what a layer answers."""
        name = weight.name
        sums = self.sums.setdefault(name, Sums())
        wanted = self.reading("outputs")
        for values in responses_of(weight, outputs, self.padding):
            if len(values):
                block = block_of(name, values, "gave NaN or infinite outputs")
                self._add(sums, name, "outputs", wanted, block)

    def both(self, weight: Weight, dense: Tensor, pruned: Tensor) -> None:
        """Take in the same call in the dense and in the pruned model."""
        name = weight.name
        sums = self.sums.setdefault(name, Sums())
        single, pairs = self.reading("inputs"), self.reading("pair")
        for before, after in zip(
            vectors_of(weight, dense, self.padding),
            vectors_of(weight, pruned, self.padding),
            strict=True,
        ):
            if len(after):
                pair = Pair(dense=block_of(name, before), pruned=block_of(name, after))
                self._add(sums, name, "inputs", single, pair.pruned)
                self._add(sums, name, "pair", pairs, pair)

    def _add(
        self,
        sums: Sums,
        name: str,
        source: Source,
        wanted: list[Statistic],
        reading: Vectors | Pair,
    ) -> None:
        block = reading.pruned if isinstance(reading, Pair) else reading
        sums.counts[source] = sums.counts.get(source, 0) + len(block.values)
        for s in wanted:
            sums.totals[s.name] = s.add(sums.totals.get(s.name), reading, self.layers[name])


@contextmanager
def gathering(weights: Mapping[str, Weight], gatherer: Gatherer) -> Iterator[None]:
    """While this is open, calls of these layers go to the gatherer."""
    outputs = gatherer.outputs if gatherer.reading("outputs") else None
    with watched(weights, gatherer.inputs, outputs, gatherer.missed):
        yield


@contextmanager
def watched(
    weights: Mapping[str, Weight],
    take: Take,
    answer: Take | None = None,
    missed: Callable[[Weight], None] | None = None,
) -> Iterator[None]:
    """Call `take(weight, inputs)` before the module of each weight runs; hooks always go.

    Args:
        weights: by name of the layer.
        take: given the inputs themselves, which must be read at once or copied.
        answer: `answer(weight, outputs)`, called after the module ran, where its output is that of
            this weight alone.
        missed: `missed(weight)`, called where a call does not show what the weight multiplies.
    """
    handles = []

    def before(weight: Weight) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = weight.inputs(args, kwargs)
            if inputs is not None:
                take(weight, inputs.detach())
            elif missed is not None:
                missed(weight)

        return hook

    def after(weight: Weight, heard: Take) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and not transformed():
                heard(weight, output.detach())

        return hook

    try:
        for weight in weights.values():
            module = weight.module
            handles.append(module.register_forward_pre_hook(before(weight), with_kwargs=True))
            if answer is not None and weight.source.alone:
                handles.append(module.register_forward_hook(after(weight, answer)))
        yield
    finally:
        for handle in handles:
            handle.remove()

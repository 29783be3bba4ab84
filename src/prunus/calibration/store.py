"""The statistics of a model's layers: read as layers, merged exactly, saved and resumed."""

import functools
import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import first_of, to_device
from prunus.calibration.place import device_of
from prunus.calibration.reduce import account_of, gathered, reduced_sums
from prunus.calibration.saved import Stored, load_sums, save_sums
from prunus.calibration.statistics import Statistic
from prunus.calibration.sums import Made, Sums
from prunus.check import unknown
from prunus.coupling import Coupling, Group, Heads, couple
from prunus.hints import Batch
from prunus.layer import Layer
from prunus.rows import RowSet

__all__ = ["Calibration"]


class Calibration(Mapping[str, Layer]):
    """{name: Layer} with the statistics of one or more passes over data.

    `a + b` merges two calibrations of the same model on different data exactly: sums add.

    Attributes:
        statistics: the names of the statistics that were collected.
        class_statistics: {group: {statistic: value}} of the channel classes of each group.
        fingerprint: hash of the data, sixteen hexadecimal digits.
        samples: number of samples seen.
        rows: which samples these were; None where a folder of an older version does not say.
        example: the first two samples, for tracing; None after loading.
        refused: {name: reason} of modules with weights that are no layers.
        unseen: {name: reason} of layers that lack a statistic, because their modules do not show
            what it reads.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        sums: Mapping[str, Sums],
        *,
        statistics: Mapping[str, Statistic],
        fingerprint: str,
        samples: int,
        refused: Mapping[str, str],
        unseen: Mapping[str, str] | None = None,
        rows: RowSet | None = None,
        groups: Mapping[str, Sums] | None = None,
        example: Batch = None,
        model: nn.Module | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        self._bare = dict(layers)
        self._sums = dict(sums)
        self._group_sums = dict(groups or {})
        self._statistics = dict(statistics)
        self.class_statistics: dict[str, dict[str, Tensor]] = {
            name: own.finished(statistics, samples, 1) for name, own in self._group_sums.items()
        }
        self._layers = {}
        made: Made = {}
        for name, layer in layers.items():
            own = {
                group: self.class_statistics[group]
                for group, group_sums in self._group_sums.items()
                if name in group_sums.consumers
            }
            full = sums[name].layer(layer, statistics, samples, made)
            self._layers[name] = replace(full, classes=own) if own else full
        self._model = model
        self._coupling = coupling
        self._found: dict[Heads, dict[Hashable, Any]] = {}
        self._traces: dict[str, dict[Hashable, Any]] = {}
        self.statistics = tuple(statistics)
        self.fingerprint = fingerprint
        self.samples = samples
        self.rows = rows
        self.refused = dict(refused)
        self.unseen = dict(unseen or {})
        self.example = example

    def __getitem__(self, name: str) -> Layer:
        if name not in self._layers:
            raise KeyError(str(unknown("layer", name, self._layers)))
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return (
            f"Calibration({len(self)} layers, {self.samples} samples, "
            f"statistics={self.statistics}, fingerprint={self.fingerprint!r})"
        )

    def __add__(self, other: object) -> "Calibration":
        if not isinstance(other, Calibration):
            return NotImplemented
        if list(self) != list(other):
            raise ValueError(
                f"Only calibrations of the same layers can be merged, got {list(self)} and "
                f"{list(other)}."
            )
        for name, layer in self._bare.items():
            if not torch.equal(layer.weight.cpu(), other._bare[name].weight.cpu()):
                raise ValueError(
                    f"Layer {name!r} has other weights in the two calibrations. "
                    f"Merge calibrations of one and the same model."
                )
        for name, statistic in self._statistics.items():
            _check_merges(name, statistic)
            if other._statistics.get(name, statistic) != statistic:
                raise ValueError(
                    f"Only like statistics can be merged, got {statistic!r} and "
                    f"{other._statistics[name]!r}. Calibrate with the same."
                )
        if list(self._group_sums) != list(other._group_sums):
            raise ValueError(
                f"Only calibrations of the same groups can be merged, got "
                f"{list(self._group_sums)} and {list(other._group_sums)}."
            )
        return Calibration(
            self._bare,
            {n: s.merged(other._sums[n], self._statistics) for n, s in self._sums.items()},
            statistics=self._statistics,
            fingerprint=_joined(self.fingerprint, other.fingerprint),
            samples=self.samples + other.samples,
            rows=None if self.rows is None or other.rows is None else self.rows | other.rows,
            refused=self.refused,
            unseen=self.unseen,
            groups={
                n: g.merged(other._group_sums.get(n, Sums()), self._statistics)
                for n, g in self._group_sums.items()
            },
            example=self.example if self.example is not None else other.example,
            model=self._model or other._model,
            coupling=self._coupling or other._coupling,
        )

    def all_reduce(self, group: Any = None) -> "Calibration":
        """The calibration of all processes of a group, equal bit for bit in each of them.

        Every process has calibrated the same model on its own part of the data. The answer is what
        adding the parts in the order of the ranks gives: sums add, maxima are maxima, and a
        statistic of your own merges as it says. Tensors travel in float64.

        Args:
            group: a process group of torch.distributed; the default one where None.

        Raises:
            RuntimeError: torch.distributed was not initialised.
            ValueError: a statistic is no sum over data, or the processes have different layers,
                weights or statistics; every process raises it.
        """
        for name, statistic in self._statistics.items():
            _check_merges(name, statistic)
        own = account_of(
            self._bare,
            self._sums,
            self._group_sums,
            self._statistics,
            self.fingerprint,
            self.samples,
            self.rows,
        )
        every = gathered(own, group)
        rows = [entry.rows for entry in every]
        return Calibration(
            self._bare,
            reduced_sums(self._sums, every, self._statistics, group),
            statistics=self._statistics,
            fingerprint=functools.reduce(_joined, [entry.fingerprint for entry in every]),
            samples=sum(entry.samples for entry in every),
            rows=None
            if any(r is None for r in rows)
            else RowSet.of([r.hashes for r in rows if r is not None]),
            refused=self.refused,
            unseen=self.unseen,
            groups=reduced_sums(self._group_sums, every, self._statistics, group),
            example=self.example,
            model=self._model,
            coupling=self._coupling,
        )

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of channel classes that node pruning acts on."""
        return self.coupling().groups

    def coupling(self, model: nn.Module | None = None) -> Coupling:
        """Which channels go together; traced once and kept.

        Args:
            model: the model, where the calibration was loaded from a folder.
        """
        if self._coupling is None:
            traced = model if model is not None else self._model
            if traced is None or self.example is None:
                raise ValueError(
                    "A calibration loaded from a folder has no model and no example to trace. "
                    "Calibrate again, or use a recipe for edges."
                )
            self._coupling = couple(traced, to_device(self.example, device_of(traced)))
        return self._coupling

    def found(self, heads: Heads = "kv") -> MutableMapping[Hashable, Any]:
        """What rules for nodes have found of these statistics for every count.

        It stays in memory with the calibration: an order of each group's classes, and for rules
        that imitate a matrix (classes, classes), never larger than the consumers' Gram matrices.

        Args:
            heads: what of attention is a class, which decides the groups: see `Node`.
        """
        return self._found.setdefault(heads, {})

    def traces(self, layer: str) -> MutableMapping[Hashable, Any]:
        """What rules for edges have found of a layer's statistics for every count.

        It stays in memory with the calibration: for an elimination in the way of optimal brain
        surgeon, 16 bytes for each weight.
        """
        return self._traces.setdefault(layer, {})

    def with_example(self, model: nn.Module, example: Batch) -> "Calibration":
        """The same statistics with a model and an example to trace, after loading."""
        return Calibration(
            self._bare,
            self._sums,
            statistics=self._statistics,
            fingerprint=self.fingerprint,
            samples=self.samples,
            rows=self.rows,
            refused=self.refused,
            unseen=self.unseen,
            groups=self._group_sums,
            example=first_of(example, 2),
            model=model,
            coupling=self._coupling,
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the statistics and the layers' weights to `folder` (safetensors and JSON)."""
        return save_sums(
            folder,
            Stored(
                layers=self._bare,
                sums=self._sums,
                groups=self._group_sums,
                statistics=self._statistics,
                fingerprint=self.fingerprint,
                samples=self.samples,
                rows=self.rows,
                refused=self.refused,
                unseen=self.unseen,
            ),
        )

    @staticmethod
    def load(folder: str | os.PathLike[str], statistics: Iterable[Statistic] = ()) -> "Calibration":
        """Read a calibration that `save` wrote.

        Args:
            folder: where it lies.
            statistics: instances of those that are in no table: the user's own.

        Raises:
            FileNotFoundError: the folder or a file is missing.
            ValueError: a file is truncated, foreign, or of a newer version, or a statistic is
                known to nobody.
        """
        stored = load_sums(folder, statistics)
        return Calibration(
            stored.layers,
            stored.sums,
            statistics=stored.statistics,
            fingerprint=stored.fingerprint,
            samples=stored.samples,
            rows=stored.rows,
            refused=stored.refused,
            unseen=stored.unseen,
            groups=stored.groups,
        )


def _check_merges(name: str, statistic: Statistic) -> None:
    if not statistic.reads.merges:
        raise ValueError(
            f"The statistic {name!r} is no sum over the data, so calibrations with it cannot be "
            f"merged. Calibrate once on all the data."
        )


def _joined(one: str, other: str) -> str:
    """The fingerprint of two data sets, one after the other."""
    return hashlib.sha256((one + other).encode()).hexdigest()[:16]

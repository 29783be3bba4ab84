"""The statistics of a model's layers: read as layers, merged exactly, saved and resumed."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from prunus.calibration.batches import Batches, first_of, to_device
from prunus.calibration.collect import (
    BY_GRADIENT,
    PER_WEIGHT,
    STATISTICS,
    Moments,
    collect,
    guard_memory,
)
from prunus.calibration.select import matching, prunable
from prunus.check import unknown, whole
from prunus.coupling import Coupling, Group, couple
from prunus.files import write_bytes, write_text
from prunus.layer import Layer, squeeze_groups
from prunus.progress import progress_bar
from prunus.rows import RowSet

__all__ = ["Calibration", "calibrate", "stored_json"]

FORMAT = 1
ROWS = "||rows"  # no layer has such a name


class Calibration(Mapping[str, Layer]):
    """{name: Layer} with the statistics of one or more passes over data.

    `a + b` merges two calibrations of the same model on different data exactly: sums add.

    Attributes:
        statistics: the statistics that were collected.
        fingerprint: hash of the data, sixteen hexadecimal digits.
        samples: number of samples seen.
        rows: which samples these were; None where a folder of an older version does not say.
        example: the first two samples, for tracing; None after loading.
        refused: {name: reason} of modules with weights that are no layers.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        moments: Mapping[str, Moments],
        *,
        statistics: tuple[str, ...],
        fingerprint: str,
        samples: int,
        refused: Mapping[str, str],
        rows: RowSet | None = None,
        example: Any = None,
        model: nn.Module | None = None,
    ) -> None:
        self._bare = dict(layers)
        self._moments = dict(moments)
        self._layers = {
            name: _with(layer, moments[name], samples) for name, layer in layers.items()
        }
        self._model = model
        self._coupling: Coupling | None = None
        self.statistics = statistics
        self.fingerprint = fingerprint
        self.samples = samples
        self.rows = rows
        self.refused = dict(refused)
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

    def __add__(self, other: "Calibration") -> "Calibration":
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
        for statistic in ("hessian_grad", "flow"):
            if statistic in self.statistics:
                raise ValueError(
                    f"The statistic {statistic!r} is no sum over the data, so calibrations with it "
                    f"cannot be merged. Calibrate once on all the data."
                )
        joined = hashlib.sha256((self.fingerprint + other.fingerprint).encode()).hexdigest()
        merged = Calibration(
            self._bare,
            {name: m.add(other._moments[name]) for name, m in self._moments.items()},
            statistics=self.statistics,
            fingerprint=joined[:16],
            samples=self.samples + other.samples,
            rows=None if self.rows is None or other.rows is None else self.rows | other.rows,
            refused=self.refused,
            example=self.example if self.example is not None else other.example,
            model=self._model or other._model,
        )
        merged._coupling = self._coupling or other._coupling
        return merged

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

    def with_example(self, model: nn.Module, example: Any) -> "Calibration":
        """The same statistics with a model and an example to trace, after loading."""
        given = first_of(example, 2)
        copy = Calibration(
            self._bare,
            self._moments,
            statistics=self.statistics,
            fingerprint=self.fingerprint,
            samples=self.samples,
            rows=self.rows,
            refused=self.refused,
            example=given,
            model=model,
        )
        copy._coupling = self._coupling
        return copy

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the statistics and the layers' weights to `folder` (safetensors and JSON)."""
        target = Path(folder)
        tensors: dict[str, Tensor] = {}
        for name, layer in self._bare.items():
            tensors[f"{name}|weight"] = layer.weight.contiguous()
            if layer.bias is not None:
                tensors[f"{name}|bias"] = layer.bias.contiguous()
            for key, value in self._moments[name].sums.items():
                tensors[f"{name}|{key}"] = value.contiguous()
        facts = {
            "format": FORMAT,
            "kind": "calibration",
            "statistics": self.statistics,
            "fingerprint": self.fingerprint,
            "samples": self.samples,
            "refused": self.refused,
            "layers": {
                name: {
                    "groups": layer.groups,
                    "taps": layer.taps,
                    "count": self._moments[name].count,
                }
                for name, layer in self._bare.items()
            },
        }
        if self.rows is not None:
            tensors[ROWS] = self.rows.hashes
        data = save(apart(tensors))
        facts["hash"] = hashlib.sha256(data).hexdigest()  # both files come from one saving
        write_bytes(target / "statistics.safetensors", data)
        write_text(target / "calibration.json", json.dumps(facts, indent=1) + "\n")
        return target

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> "Calibration":
        """Read a calibration that `save` wrote.

        Raises:
            FileNotFoundError: the folder or a file is missing.
            ValueError: a file is truncated, foreign, or of a newer version.
        """
        source = Path(folder)
        facts = stored_json(source / "calibration.json", "calibration", FORMAT)
        path = source / "statistics.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing. Give a folder that prunus saved whole.")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != facts.get("hash"):
            raise ValueError(
                f"{path} is truncated or was changed: its hash is not the one in "
                f"calibration.json. Save the calibration again."
            )
        tensors = load(data)
        layers: dict[str, Layer] = {}
        moments: dict[str, Moments] = {}
        try:
            for name, entry in facts["layers"].items():
                own = {
                    key.rpartition("|")[2]: value
                    for key, value in tensors.items()
                    if key.rpartition("|")[0] == name
                }
                layers[name] = Layer(
                    name=name,
                    weight=own.pop("weight"),
                    bias=own.pop("bias", None),
                    groups=entry["groups"],
                    taps=entry["taps"],
                )
                moments[name] = Moments(count=entry["count"], sums=own)
            return Calibration(
                layers,
                moments,
                statistics=tuple(facts["statistics"]),
                fingerprint=facts["fingerprint"],
                samples=facts["samples"],
                rows=RowSet(tensors[ROWS]) if ROWS in tensors else None,
                refused=facts["refused"],
            )
        except KeyError as error:
            raise ValueError(f"{source} is no whole calibration: {error} is missing.") from None


def calibrate(
    model: nn.Module,
    data: Any,
    statistics: Sequence[str] = ("gram", "mean"),
    *,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    max_samples: int | None = None,
    max_positions: int | None = None,
    loss: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Collect the statistics of the layers' inputs in one streaming pass.

    Args:
        model: the network; it comes back in the mode, on the device and with the flags it had.
        data: one batch (Tensor, tuple, Mapping) or an iterable of batches.
        statistics: one or more of `diag`, `gram`, `mean`, `max`, `zeros`, `grad`,
            `sensitivity`, `hessian_grad`, `flow`.
        layers: names or globs of the layers to watch; all prunable ones where None.
        exclude: names or globs to leave out.
        max_samples: stop after this many samples (a batch whose tensors differ in length is taken
            whole).
        max_positions: for convolutions, at most this many patches of every sample, drawn with
            `seed` for each layer on its own.
        loss: for `grad` and `hessian_grad`, a function (output, batch) -> scalar, a mean over the
            batch's samples.
        seed: of the drawn positions, and of the signs for `sensitivity` with many outputs.
        device: where to run; the model's own where None.
        progress: show a bar; None shows it on a terminal after two seconds.

    Returns:
        a `Calibration`; its Gram matrices are means over samples and positions, in float64.

    Raises:
        ValueError: unknown statistics or layers, empty or unfit data, NaN or infinite weights or
            inputs (the layer is named).
        MemoryError: a Gram matrix would need more than the memory limit.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    statistics = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    if not statistics:
        raise ValueError(f"`statistics` must name one or more of {', '.join(STATISTICS)}.")
    for name in statistics:
        if name not in STATISTICS:
            raise unknown("statistic", name, STATISTICS)
        if name == "cross":
            raise ValueError(
                "The statistic 'cross' belongs to two models. Use a recipe with inputs='pruned'."
            )
    if max_samples is not None:
        whole("max_samples", max_samples, low=1)
    if max_positions is not None:
        whole("max_positions", max_positions, low=1)
    found, refused = prunable(model)
    names = matching(list(found), layers, exclude, refused)
    weights = {name: found[name] for name in names}
    bare = {name: weight.layer() for name, weight in weights.items()}
    if "gram" in statistics:
        guard_memory(bare)
    batches = Batches(data)
    example = first_of(batches.peek(), 2)
    total = len(data) if isinstance(data, list) else None
    with (
        placed(model, device) as where,
        progress_bar("calibrating", total, progress=progress) as advance,
    ):
        moments, fingerprint, samples = collect(
            model,
            weights,
            statistics,
            batches,
            max_samples=max_samples,
            max_positions=max_positions,
            seed=seed,
            loss=loss,
            device=where,
            advance=advance,
        )
    for name in names:
        if name not in moments or not moments[name].sums:
            refused[name] = "its forward never ran on the data"
            del bare[name]
    if not bare:
        raise ValueError(f"None of the layers {names} ran on the data. Check the model's forward.")
    return Calibration(
        {name: _copied(layer) for name, layer in bare.items()},
        {name: moments[name].to(bare[name].weight.device) for name in bare},
        statistics=statistics,
        fingerprint=fingerprint.value,
        samples=samples,
        rows=fingerprint.rows,
        refused=refused,
        example=example,
        model=model,
    )


@contextmanager
def placed(model: nn.Module, device: str | torch.device | None) -> Iterator[torch.device]:
    """The model on `device` (where it is, if None); it goes back on any exit.

    Raises:
        ValueError: a model that lies on several devices was asked to move.
    """
    home = device_of(model)
    where = home if device is None else checked_device(device)
    if where == home:
        yield where
        return
    places = {str(t.device) for t in [*model.parameters(), *model.buffers()]}
    if len(places) > 1:
        raise ValueError(
            f"The model lies on {', '.join(sorted(places))}, so it cannot move to {where} and "
            f"back. Leave `device` out."
        )
    try:
        model.to(where)
        yield where
    finally:
        model.to(home)


def checked_device(device: str | torch.device) -> torch.device:
    """`device` as a torch device, or a ValueError."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"`device` must name a torch device, such as cpu or cuda:0, got {device!r}."
        ) from None


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU where it has none."""
    for tensor in [*model.parameters(), *model.buffers()]:
        return tensor.device
    return torch.device("cpu")


def stored_json(path: Path, kind: str, newest: int) -> dict[str, Any]:
    """A JSON file that prunus wrote, or an error that says what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"No {path.name} in {path.parent}. Give a folder that prunus saved."
        )
    try:
        facts = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no JSON ({error}).") from None
    if not isinstance(facts, dict) or (
        facts.get("kind") != kind or not isinstance(facts.get("format"), int)
    ):
        raise ValueError(f"{path} is no {kind} that prunus saved. Give another folder.")
    if facts["format"] > newest:
        raise ValueError(
            f"{path} has format {facts['format']}, newer than {newest}, which this version "
            f"reads. Upgrade prunus."
        )
    return facts


def _copied(layer: Layer) -> Layer:
    """The layer with weights of its own, which later training of the model leaves alone."""
    bias = None if layer.bias is None else layer.bias.clone()
    return replace(layer, weight=layer.weight.clone(), bias=bias)


def _with(layer: Layer, moments: Moments, samples: int) -> Layer:
    """The layer with its sums turned into means; gradients are means over the model's samples."""
    values: dict[str, Any] = {"samples": moments.count or samples}
    for key, total in moments.sums.items():
        if key in BY_GRADIENT:
            values[key] = total / samples
        elif key in PER_WEIGHT:
            values[key] = total
        elif key == "max":
            values[key] = squeeze_groups(total, layer.groups)
        elif key == "gram":
            mean = total / moments.count
            values[key] = squeeze_groups((mean + mean.transpose(1, 2)) / 2, layer.groups)
        else:
            values[key] = squeeze_groups(total / moments.count, layer.groups)
    return replace(layer, **values)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    apart = {}
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        apart[key] = value
    return apart

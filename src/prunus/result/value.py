"""What a pruning answers: the pruned model, what was done to every layer, what it costs."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prunus.budget import Plan
from prunus.calibration.batches import call, size_of, to_device
from prunus.calibration.place import device_of
from prunus.cost import Cost, measure_latency
from prunus.coupling import Coupling
from prunus.hints import Batch
from prunus.recipe import Recipe
from prunus.rows import RowSet
from prunus.surgery.alike import Spare
from prunus.surgery.compact import compact
from prunus.surgery.masked import Hold, hold
from prunus.surgery.proof import Proof

__all__ = ["LayerResult", "Pruned"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerResult:
    """What pruning did to one layer.

    Attributes:
        name: of the layer; see `prunus.weights`.
        mask: True where a weight is kept.
        weight: weights after compensation, exactly zero where `mask` is False.
        bias: the bias after compensation, or None.
        error: E‖(W x + b) − (W′ x + b′)‖² on the calibration inputs over the kept outputs,
            squared output units; None without a Gram matrix.
        power: E‖W x‖² of the dense weights on the same inputs and outputs, which `error` is seen
            against; None where there is no error.
        scale: factors that a rescaled selection put on the weights, or None.
        ridge: largest relative damping that a row needed, or None.
        notes: what the selection has to say, such as kernel diagnostics.
    """

    name: str
    mask: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None = None
    error: float | None = None
    power: float | None = None
    scale: Tensor | None = None
    ridge: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.mask.shape))
        error = "" if self.error is None else f", error {self.error:.4g}"
        if self.relative_error is not None:
            error += f" ({100 * self.relative_error:.3g} %)"
        return f"LayerResult({self.name!r}: {shape}, density {self.density:.4g}{error})"

    @property
    def relative_error(self) -> float | None:
        """The error as a share of what the dense weights make of the inputs, E‖W x‖²."""
        if self.error is None or not self.power:
            return None
        return self.error / self.power

    @property
    def density(self) -> float:
        """Kept / total of this layer's weights."""
        return float(self.mask.to(torch.float64).mean())


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """A pruned network and the account of its pruning.

    Attributes:
        model: a copy of the input model with zeros; same classes and `state_dict` keys.
        layers: what was done to each layer, at the last pruning step.
        not_pruned: {name: reason} of modules with weights that were left alone.
        plan: whole numbers per layer or group.
        recipe: the method.
        name: its name in `prunus.recipes`, or one made of its digest.
        seed: of all random draws.
        cost_before: of the dense network.
        cost_after: of the pruned network; for nodes, of the compact one.
        data_fingerprint: hash of the calibration data, or None.
        data_rows: which samples calibrated, or None; those that planned are in `plan.rows`.
        metrics: what `evaluate` said, by "before", "pruned" and "trained".
        notes: what the reader should know.
        masks: True where an entry is kept, for every parameter that has zeros to hold.
        dense: the input model, where it is at hand.
        dense_state: a checksum of its state when it was pruned (`rows.state_sum`).
        example: the first samples of the data, for tracing and timing.
        coupling: which channels go together, where nodes were pruned; `compact` follows it.
        proved: the compact network that was found equal to `model` on `example`, which `compact`
            hands out a copy of as long as nothing of `model` has changed.
    """

    model: nn.Module
    layers: Mapping[str, LayerResult]
    not_pruned: Mapping[str, str]
    plan: Plan
    recipe: Recipe
    name: str
    seed: int
    cost_before: Cost
    cost_after: Cost
    data_fingerprint: str | None = None
    data_rows: RowSet | None = field(default=None, repr=False)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    dense: nn.Module | None = field(default=None, repr=False)
    dense_state: str | None = field(default=None, repr=False)
    example: Batch = field(default=None, repr=False)
    coupling: Coupling | None = field(default=None, repr=False)
    stored_compact: nn.Module | None = field(default=None, repr=False)
    proved: Proof | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Two lines; `summary()` has the rest."""
        before, after = self.cost_before, self.cost_after
        # Experts are parameters that no layer's account names.
        changed = f"{len(self.layers)} layers" if self.layers else f"{len(self.masks)} parameters"
        lines = [
            f"Pruned by {self.name!r}, seed {self.seed}: {changed}, density "
            f"{after.density:.4g}, parameters {before.parameters:,} → {after.parameters:,}, bytes "
            f"{before.bytes:,} → {after.bytes:,}"
        ]
        if not self.plan.feasible:
            lines.append("  the budget is NOT MET: " + "; ".join(self.plan.notes))
        lines.append(
            "  .model, .compact(), .summary(), .report(path), .save(folder), .certify(data)"
        )
        return "\n".join(lines)

    def hold(self, optimizer: Any) -> Hold:
        """Re-apply the masks after every step of `optimizer`, until `.remove()` on the answer.

        Works against gradients, momentum and weight decay; also as a context manager.
        """
        return hold(self.model, self.masks, optimizer)

    def compact(
        self, example: Batch = None, *, rtol: float = 1e-4, spare: Spare | None = None
    ) -> nn.Module:
        """A physically smaller dense network, proved equal to `model` on the example.

        Args:
            example: a batch; the first samples of the pruning data where None.
            rtol: largest difference allowed, relative to max |output|.
            spare: which dead units go, of those that could; all of them where None.
        """
        if example is None and spare is None and self.stored_compact is not None:
            return copy.deepcopy(self.stored_compact)
        given = self.example if example is None else example
        if given is None:
            raise ValueError("`compact` needs an example batch to trace. Pass one.")
        return compact(self, given, rtol=rtol, spare=spare)

    def measured(self, example: Batch = None, *, seconds: float = 0.5) -> "Pruned":
        """The same result with measured latencies, dense against pruned, in its costs.

        A network that lost channels, blocks or experts is timed compact, one that lost single
        weights as it is: dense tensors with zeros in them.

        Args:
            example: a batch; the first samples of the pruning data where None.
            seconds: about how long to time each network.
        """
        given = self.example if example is None else example
        if given is None or self.dense is None:
            missing = "an example batch" if given is None else "the dense model"
            raise ValueError(f"Measuring latency needs {missing}, which this result lacks.")
        batch = to_device(given, device_of(self.model))
        small = self.compact(batch) if self.recipe.granularity.shrinks else self.model
        before, after = measure_latency(
            [self.dense, small],
            lambda m: call(m, batch),
            batch=size_of(batch) or 1,
            seconds=seconds,
        )
        return replace(
            self,
            cost_before=replace(self.cost_before, latency=before),
            cost_after=replace(
                self.cost_after, latency=after, latency_share=after.median / before.median
            ),
        )

    def certify(self, data: Any = None, **options: Any) -> Any:
        """What is guaranteed for this network; see `prunus.certify`."""
        from prunus.guarantee import certify

        if self.dense is None:
            raise ValueError(
                "A certificate compares with the dense model, which this result lacks. Load it "
                "with prunus.load(folder, model=dense_model)."
            )
        return certify(self.dense, self, data=data, **options)

    def headline(self, certificate: Any = None) -> str:
        """The score before and after, how much smaller and faster, and what is guaranteed.

        Args:
            certificate: what `certify` found, to end on.
        """
        from prunus.report.headline import pruned_headline

        return pruned_headline(self, certificate)

    def summary(self) -> str:
        """The layers, what they keep and what it cost, as a text table."""
        from prunus.report.summary import summary

        return summary(self)

    def report(
        self,
        path: str | os.PathLike[str],
        *,
        certificate: Any = None,
        made: str | None = None,
    ) -> Path:
        """Write one self-contained HTML page about this pruning; needs the extra `report`.

        Args:
            path: of the page.
            certificate: what `certify` found, to stand on the page.
            made: the date in its foot; today's where None.
        """
        from prunus.report.pruning import write_report

        return write_report(self, path, certificate, made=made)

    def _repr_html_(self) -> str:
        from prunus.report.views import pruned_html

        return pruned_html(self)

    def save(self, folder: str | os.PathLike[str], *, example: Batch = None) -> Path:
        """Write the pruned network to `folder`: safetensors and JSON, no pickle.

        Layers with single weights removed are stored as their kept values and one bit per entry
        where that is smaller.

        Args:
            folder: made if missing; files in it are replaced only once they are whole.
            example: a batch; given, the compact network is stored too.
        """
        from prunus.result.store import save

        return save(self, folder, example=example)

    def reloaded(self, folder: str | os.PathLike[str]) -> "Pruned":
        """What `save` wrote to `folder`, for this result's own network; see `prunus.load`."""
        from prunus.result.store import load

        return load(folder, self.model if self.dense is None else self.dense)

    def export(
        self,
        path: str | os.PathLike[str],
        format: str = "onnx",
        *,
        example: Batch = None,
        measure: bool = True,
        int8: bool = False,
    ) -> Any:
        """Write the network for other software, run what was written, compare it and time it.

        The compact network where there is one, else the one with zeros. Files get their names
        once they have passed the comparison.

        Args:
            path: of the file, or of the folder for "hf" and "safetensors".
            format: "onnx", "pt2", "hf" or "safetensors".
            example: one batch; the first samples of the pruning data where None.
            measure: also time it against the dense network, in torch and in the engine that reads
                the format; the verdict is "no benefit" where the interval includes 1.
            int8: for "onnx", also a file with weights of eight bits.

        Returns:
            a `prunus.export.Export`: files, checks, latencies, verdict.

        Raises:
            prunus.export.ExportError: it cannot be written so, or what was written differs.
            ImportError: the format's library is not installed.
        """
        from prunus.export import export

        return export(self, path, format, example=example, measure=measure, int8=int8)

    def save_hf(
        self, folder: str | os.PathLike[str], *, example: Batch = None, tokenizer: Any = None
    ) -> Any:
        """Write a folder that plain `from_pretrained` loads, for a model of transformers.

        The compact network where the configuration can say its widths; else units that are zero
        stay until it can (padding), else `per_layer_config`, else our own folder. What was written
        is loaded and its outputs are compared before the folder gets its name; the answer's
        `notes` say which way it was.

        Args:
            folder: new or empty.
            example: one batch to compare on; the first samples of the pruning data where None.
            tokenizer: saved beside the network, where given.

        Returns:
            a `prunus.export.Export`.

        Raises:
            TypeError: the model has no configuration.
            ValueError: the model came from this folder, or there is no example.
            FileExistsError: the folder holds files.
            OSError: the disk is full.
        """
        from prunus.export.to_hf import save_hf

        return save_hf(self, folder, example=example, tokenizer=tokenizer)

"""What a pruning answers: the pruned model, what was done to every layer, what it costs."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from prunus.budget import Plan
from prunus.calibration.batches import call, size_of, to_device
from prunus.calibration.store import apart, device_of, stored_json
from prunus.cost import Cost, Latency, measure_latency
from prunus.files import write_bytes, write_text
from prunus.granularity import Node
from prunus.layer import layer_of, view_of
from prunus.recipe import Recipe, parse
from prunus.surgery.compact import compact
from prunus.surgery.masked import Hold, hold
from prunus.surgery.resize import resize

__all__ = ["LayerResult", "Pruned", "load"]

FORMAT = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerResult:
    """What pruning did to one layer.

    Attributes:
        name: module name, as in `model.named_modules()`.
        mask: True where a weight is kept.
        weight: weights after compensation, exactly zero where `mask` is False.
        bias: the bias after compensation, or None.
        error: E‖(W x + b) − (W′ x + b′)‖² on the calibration inputs over the kept outputs,
            squared output units; None without a Gram matrix.
        scale: factors that a rescaled selection put on the weights, or None.
        ridge: largest relative damping that a row needed, or None.
        notes: what the selection has to say, such as kernel diagnostics.
    """

    name: str
    mask: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None = None
    error: float | None = None
    scale: Tensor | None = None
    ridge: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

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
        metrics: what `evaluate` said, by "before", "pruned" and "trained".
        notes: what the reader should know.
        masks: True where an entry is kept, for every parameter that has zeros to hold.
        dense: the input model, where it is at hand.
        example: the first samples of the data, for tracing and timing.
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
    metrics: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    dense: nn.Module | None = field(default=None, repr=False)
    example: Any = field(default=None, repr=False)
    stored_compact: nn.Module | None = field(default=None, repr=False)

    def hold(self, optimizer: torch.optim.Optimizer) -> Hold:
        """Re-apply the masks after every step of `optimizer`, until `.remove()` on the answer.

        Works against gradients, momentum and weight decay; also as a context manager.
        """
        return hold(self.model, self.masks, optimizer)

    def compact(self, example: Any = None, *, rtol: float = 1e-4) -> nn.Module:
        """A physically smaller dense network, proved equal to `model` on the example.

        Args:
            example: a batch; the first samples of the pruning data where None.
            rtol: largest difference allowed, relative to max |output|.
        """
        if example is None and self.stored_compact is not None:
            return copy.deepcopy(self.stored_compact)
        given = self.example if example is None else example
        if given is None:
            raise ValueError("`compact` needs an example batch to trace. Pass one.")
        return compact(self.model, given, rtol=rtol)

    def measured(self, example: Any = None, *, seconds: float = 0.5) -> "Pruned":
        """The same result with measured latencies, dense against pruned, in its costs.

        A node-pruned network is timed compact, an edge-pruned one as it is: dense tensors with
        zeros in them.

        Args:
            example: a batch; the first samples of the pruning data where None.
            seconds: about how long to time each network.
        """
        given = self.example if example is None else example
        if given is None or self.dense is None:
            missing = "an example batch" if given is None else "the dense model"
            raise ValueError(f"Measuring latency needs {missing}, which this result lacks.")
        batch = to_device(given, device_of(self.model))
        small = self.compact(batch) if isinstance(self.recipe.granularity, Node) else self.model
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

    def summary(self) -> str:
        """The layers, what they keep and what it cost, as a text table."""
        from prunus.report.summary import summary

        return summary(self)

    def report(self, path: str | os.PathLike[str], *, certificate: Any = None) -> Path:
        """Write one self-contained HTML page about this pruning; needs the extra `report`.

        Args:
            path: of the page.
            certificate: what `certify` found, to stand on the page.
        """
        from prunus.report.pruning import write_report

        return write_report(self, path, certificate)

    def _repr_html_(self) -> str:
        from prunus.report.summary import summary_html

        return summary_html(self)

    def save(self, folder: str | os.PathLike[str], *, example: Any = None) -> Path:
        """Write the pruned network to `folder`: safetensors and JSON, no pickle.

        Layers with single weights removed are stored as their kept values and one bit per entry
        where that is smaller.

        Args:
            folder: made if missing; files in it are replaced only once they are whole.
            example: a batch; given, the compact network is stored too.
        """
        target = Path(folder)
        packed: dict[str, Tensor] = {}
        for key, value in self.model.state_dict().items():
            packed.update(_packed(key, value.detach().cpu()))
        masks = {name: _bits(mask.cpu()) for name, mask in self.masks.items()}
        extra = {f"mask|{name}": value for name, value in masks.items()}
        facts: dict[str, Any] = {
            "format": FORMAT,
            "kind": "pruned",
            "recipe": repr(self.recipe),
            "recipe_digest": self.recipe.digest,
            "name": self.name,
            "seed": self.seed,
            "plan": {
                "kept": {
                    n: list(k) if not isinstance(k, int) else k for n, k in self.plan.kept.items()
                },
                "density": self.plan.density,
                "limit": self.plan.limit,
                "kind": self.plan.kind,
                "value": self.plan.value,
                "feasible": self.plan.feasible,
                "notes": list(self.plan.notes),
            },
            "layers": {
                n: {"error": r.error, "ridge": r.ridge, "notes": dict(r.notes)}
                for n, r in self.layers.items()
            },
            "not_pruned": dict(self.not_pruned),
            "cost_before": asdict(self.cost_before),
            "cost_after": asdict(self.cost_after),
            "data_fingerprint": self.data_fingerprint,
            "metrics": dict(self.metrics),
            "notes": list(self.notes),
            "dense": None if self.dense is None else weights_digest(self.dense),
            "shapes": {k: list(v.shape) for k, v in self.model.state_dict().items()},
            "dtypes": {k: str(v.dtype) for k, v in self.model.state_dict().items()},
            "mask_shapes": {k: list(v.shape) for k, v in self.masks.items()},
        }
        parts = {"weights": save_tensors(apart({**packed, **extra}))}
        if example is not None:
            smaller = {k: v.detach().cpu() for k, v in self.compact(example).state_dict().items()}
            parts["compact"] = save_tensors(apart(smaller))
        # Files are named by their content and the account is replaced last: an interrupted save
        # leaves the old network whole.
        digests = {part: hashlib.sha256(data).hexdigest() for part, data in parts.items()}
        facts["files"] = digests
        for part, data in parts.items():
            write_bytes(target / _file_name(part, digests[part]), data)
        write_text(target / "pruned.json", json.dumps(facts, indent=1, default=str) + "\n")
        current = {_file_name(part, digest) for part, digest in digests.items()}
        for stale in target.glob("*-????????????.safetensors"):
            if stale.name not in current and stale.name.partition("-")[0] in ("weights", "compact"):
                stale.unlink()
        return target


def load(
    folder: str | os.PathLike[str], model: nn.Module | Callable[[], nn.Module] | None = None
) -> Pruned:
    """Read a pruned network that `Pruned.save` wrote; nothing in the folder is executed.

    Args:
        folder: the folder.
        model: the dense model, or a function that builds it. Its weights are not changed; where
            they are the dense ones of the pruning, the result can certify.

    Raises:
        FileNotFoundError: no such folder, or a file is missing.
        ValueError: a file is truncated, foreign or newer, or the model does not fit; or no model.
    """
    source = Path(folder)
    facts = stored_json(source / "pruned.json", "pruned", FORMAT)
    if model is None:
        raise ValueError(
            f"{source} holds weights and masks, but no code. Pass model=, a module or a function "
            f"that builds one, of the same architecture."
        )
    dense = model if isinstance(model, nn.Module) else model()
    try:
        tensors = _read(source, "weights", facts["files"])
        state = {key: _unpacked(key, tensors, facts) for key in facts["shapes"]}
        masks = {
            name: _unbits(tensors[f"mask|{name}"], shape)
            for name, shape in facts["mask_shapes"].items()
        }
        pruned = copy.deepcopy(dense)
        _fit(pruned, state, source)
        stored = None
        if "compact" in facts["files"]:
            stored = resize(copy.deepcopy(dense), _read(source, "compact", facts["files"]))
        recipe = parse(facts["recipe"])
        kept = {
            n: k if isinstance(k, int) else tuple(k) for n, k in facts["plan"].pop("kept").items()
        }
        notes = tuple(facts["plan"].pop("notes"))
        is_dense = facts["dense"] is not None and weights_digest(dense) == facts["dense"]
        result = Pruned(
            model=pruned,
            layers={},
            not_pruned=facts["not_pruned"],
            plan=Plan(kept=kept, notes=notes, **facts["plan"]),
            recipe=recipe,
            name=facts["name"],
            seed=facts["seed"],
            cost_before=_cost(facts["cost_before"]),
            cost_after=_cost(facts["cost_after"]),
            data_fingerprint=facts["data_fingerprint"],
            metrics=facts["metrics"],
            notes=tuple(facts["notes"]),
            masks=masks,
            dense=dense if is_dense else None,
            stored_compact=stored,
        )
        return replace(result, layers=_layers(pruned, masks, facts["layers"]))
    except KeyError as error:
        raise ValueError(f"{source} is no whole pruned network: {error} is missing.") from None


def weights_digest(model: nn.Module) -> str:
    """A hash of every tensor of the model's state."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _layers(
    model: nn.Module, masks: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> dict[str, LayerResult]:
    found = {}
    for name, entry in facts.items():
        module = model.get_submodule(name)
        view = view_of(module)
        if view is None:
            raise ValueError(
                f"Layer {name!r} is a {type(module).__name__}, which has no weight view. Register "
                f"the one that the pruning used."
            )
        layer = layer_of(name, module)
        mask = masks.get(f"{name}.weight")
        kept = (
            torch.ones_like(layer.weight, dtype=torch.bool)
            if mask is None
            else view.matrix(module, mask)
        )
        found[name] = LayerResult(
            name=name,
            mask=kept,
            weight=layer.weight,
            bias=layer.bias,
            error=entry["error"],
            ridge=entry["ridge"],
            notes=entry["notes"],
        )
    return found


def _cost(facts: dict[str, Any]) -> Cost:
    latency = facts.pop("latency")
    return Cost(**facts, latency=None if latency is None else Latency(**latency))


def _file_name(part: str, digest: str) -> str:
    return f"{part}-{digest[:12]}.safetensors"


def _read(folder: Path, part: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    path = folder / _file_name(part, digests[part])
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Give a folder that prunus saved whole.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digests[part]:
        raise ValueError(
            f"{path} is truncated or was changed: its hash is not the one in pruned.json. "
            f"Save the network again."
        )
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}).") from None


def _fit(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"The model does not fit the network saved in {source}: {lines[-1].strip()} "
            f"Build the architecture that was pruned."
        ) from None


def _packed(key: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor as it is, or as its non-zero values and one bit per entry where that is smaller."""
    filled = value != 0
    count = int(filled.sum())
    if (
        count * value.element_size() + (value.numel() + 7) // 8
        >= value.numel() * value.element_size()
    ):
        return {f"dense|{key}": value.contiguous()}
    return {f"values|{key}": value[filled], f"bits|{key}": _bits(filled)}


def _unpacked(key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Tensor:
    if f"dense|{key}" in tensors:
        return tensors[f"dense|{key}"]
    shape = facts["shapes"][key]
    values = tensors[f"values|{key}"]
    filled = _unbits(tensors[f"bits|{key}"], shape)
    full = torch.zeros(shape, dtype=values.dtype)
    full[filled] = values
    return full


def _bits(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.contiguous().reshape(-1).numpy()))


def _unbits(bits: Tensor, shape: list[int]) -> Tensor:
    count = int(torch.tensor(shape).prod()) if shape else 1
    flat = np.unpackbits(bits.numpy(), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(shape)

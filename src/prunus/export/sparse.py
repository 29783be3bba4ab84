"""Layers whose zeros do save time: tried one by one, kept only where the clock says so.

Two forms: compressed rows (CSR) on processors, which pay off above about 90 % zeros, and two of
four on NVIDIA's sparse units. Neither is a way to store a network.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import plainly, quiet
from prunus.calibration.batches import call, to_device
from prunus.calibration.place import device_of
from prunus.cost import Speedup, compared_times, interleaved
from prunus.hints import Batch
from prunus.modes import copied, evaluating

__all__ = ["LEAST_ZEROS", "CSRLinear", "Sparse", "sparse_layers"]

LEAST_ZEROS = 0.9  # below, compressed rows were slower in every measurement
CAPABILITY = (8, 0)  # of the first sparse units


class CSRLinear(nn.Module):
    """A linear layer with its weight in compressed rows; for inference.

    Args:
        layer: a linear layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight: Tensor
        self.bias: Tensor | None
        with quiet():  # torch calls the format young
            self.register_buffer("weight", layer.weight.detach().to_sparse_csr())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).T
        out = (self.weight @ rows).T  # the kernels take the sparse matrix first
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sparse:
    """A network some of whose layers use their zeros.

    Attributes:
        model: it.
        layers: {layer: how much faster it is than dense on the example's inputs}, those replaced.
        refused: {layer: why it stays dense}.
        gain: of the whole network.
    """

    model: nn.Module
    layers: Mapping[str, Speedup]
    refused: Mapping[str, str]
    gain: Speedup


@plainly
def sparse_layers(pruned: Any, example: Batch = None, *, seconds: float = 0.2) -> Sparse:
    """Linear layers in a sparse form, each where that is faster on the example; else dense.

    A layer is replaced only where the whole interval of its measured gain lies above 1, and the
    network's answer says the same of the whole. On a processor the form is CSR, for layers with
    90 % zeros or more; on an NVIDIA GPU of capability 8.0 or more it is two of four, for half
    precision and layers that have at most two of four weights in every block.

    Args:
        pruned: a `Pruned`, or a module with zeros.
        example: one batch; its inputs are those that are timed.
        seconds: about how long to time each layer.

    Raises:
        ValueError: there is no example.
    """
    model = pruned if isinstance(pruned, nn.Module) else pruned.model
    given = getattr(pruned, "example", None) if example is None else example
    if given is None:
        raise ValueError("Measuring needs an example batch. Pass example=.")
    work = copied(model).eval()
    batch = to_device(given, device_of(work))
    inputs = _inputs(work, batch)
    found: dict[str, Speedup] = {}
    refused: dict[str, str] = {}
    for name, x in inputs.items():
        layer: Any = work.get_submodule(name)
        why, form = _form(layer)
        if form is None:
            refused[name] = why
            continue
        with torch.no_grad():
            before, after = interleaved(
                [functools.partial(layer, x), functools.partial(form, x)], seconds=seconds
            )
        gain = compared_times(before, after)
        if gain.verdict != "faster":
            refused[name] = (
                f"{gain.verdict}: {gain.ratio:.2f}× dense ({gain.low:.2f} to {gain.high:.2f})"
            )
            continue
        found[name] = gain
        owner, _, leaf = name.rpartition(".")
        setattr(work.get_submodule(owner), leaf, form)
    dense = copied(model).eval()
    return Sparse(
        model=work, layers=found, refused=refused, gain=_gain(dense, work, batch, seconds)
    )


def _gain(dense: nn.Module, work: nn.Module, batch: Batch, seconds: float) -> Speedup:
    def once(network: nn.Module) -> Callable[[], Any]:
        return lambda: call(network, batch)

    with evaluating(dense, fused=True), evaluating(work, fused=True), torch.no_grad():
        before, after = interleaved([once(dense), once(work)], seconds=seconds)
    return compared_times(before, after)


def _inputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What each linear layer reads on the batch, at its first call."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear:

            def note(_: nn.Module, given: Any, name: str = name) -> None:
                found.setdefault(name, given[0].detach().clone())

            handles.append(module.register_forward_pre_hook(note))
    try:
        with evaluating(model), torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _form(layer: nn.Linear) -> tuple[str, nn.Module | None]:
    """Why a layer has no sparse form, or the form."""
    weight = layer.weight
    zeros = float((weight == 0).float().mean())
    if weight.device.type == "cpu":
        if zeros < LEAST_ZEROS:
            return f"{zeros:.0%} zeros, of {LEAST_ZEROS:.0%} that compressed rows need", None
        if weight.dtype not in (torch.float32, torch.float64):
            return f"no kernel for {weight.dtype}", None
        return "", CSRLinear(layer)
    return _two_of_four(layer)


def _two_of_four(layer: nn.Linear) -> tuple[str, nn.Module | None]:
    weight = layer.weight
    if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < CAPABILITY:
        return f"no sparse units on {weight.device}", None
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"sparse units take half precision, the layer has {weight.dtype}", None
    rows, columns = weight.shape
    if rows % 32 or columns % 64:
        return f"sparse units take multiples of 32 × 64, the layer has {rows} × {columns}", None
    if int((weight.view(rows, -1, 4) != 0).sum(2).max()) > 2:
        return "some block of four has more than two weights", None
    form = copy.deepcopy(layer)
    from torch.sparse import to_sparse_semi_structured

    form.weight = nn.Parameter(to_sparse_semi_structured(weight.detach()), requires_grad=False)
    return "", form

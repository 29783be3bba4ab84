"""A pruned network written as one small file."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import prunus
from prunus.check import finite, function, matches, unknown, whole
from prunus.coding import published
from prunus.coding.state import Coded, Packed, pack
from prunus.compression.books import Shared, share
from prunus.compression.network import Network, network_of, with_state
from prunus.compression.rate import RateDistortion, searched
from prunus.compression.tune import tuned
from prunus.files import write_bytes
from prunus.hints import Batch
from prunus.modes import copied
from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.surgery.masked import held

__all__ = ["Compressed", "Values", "compress"]

Values = int | Mapping[str, int] | RateDistortion | None
MOST = 4096  # values of a layer
LARGEST = 65504.0  # of float16


@dataclass(frozen=True, eq=False, kw_only=True)
class Compressed:
    """A compressed network and what its bytes are spent on.

    Attributes:
        path: of the file.
        pruned: the network that the file holds, to the bit.
        bytes: of the file.
        dense_bytes: of all parameters of the dense network, each as it is in memory.
        parts: {weight: {part: bytes}}; `mask`, `codes` with their table, `book` or `values`, and
            `lanes` of an entropy-coded stream. Under "" the other tensors and the header.
        layers: what the header says of each weight: shape, kept, k, coder, lanes.
        lam: λ of values by rate and distortion, or None.
    """

    path: Path
    pruned: Pruned
    bytes: int
    dense_bytes: int
    parts: Mapping[str, Mapping[str, float]]
    layers: Mapping[str, Mapping[str, Any]]
    lam: float | None = None

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the dense parameters."""
        return self.dense_bytes / self.bytes

    def summary(self) -> str:
        """A table of the layers' bytes by part."""
        from prunus.report.summary import compressed_summary

        return compressed_summary(self)


def compress(
    pruned: Pruned,
    path: str | os.PathLike[str],
    *,
    values: Values = None,
    fine_tune: Callable[[nn.Module], object] | None = None,
    half: bool | None = None,
    coder: Literal["adaptive", "published"] = "adaptive",
    bits: int = 5,
    example: Batch = None,
    progress: bool | None = None,
) -> Compressed:
    """Write a pruned network as one safetensors file with entropy-coded masks and values.

    Args:
        pruned: the network; it stays as it is. Of a node pruning the compact network is stored.
        path: of the file, which is replaced only once it is whole.
        values: None keeps every bit of every weight. A whole number shares so many values within
            each layer by k-means; {glob of layers: number} those of the layers named (the first
            glob that matches counts, others keep their bits); `RateDistortion` chooses
            number and density of every layer by one λ.
        fine_tune: trains the model that it is given, whose shared values are parameters: the
            gradient of a value is the sum over its weights. Called once, after sharing; what was
            removed stays zero, also of layers that share no values.
        half: store the other float32 parameters (biases, norms) as float16; those that float16
            cannot hold stay. Where None: exactly when values are shared.
        coder: "adaptive" takes the smallest of several models of each layer's mask, with rANS;
            "published" writes the file of Han et al. (2015b), relative indices and codes, both
            Huffman coded.
        bits: of a relative index of the published file.
        example: a batch, for the compact network; the first samples of the pruning data where None.
        progress: as in `progress_bar`.

    Returns:
        The network that is now in the file, and the bytes by part.

    Raises:
        ValueError: weights that are not zero outside their mask, or not finite where they share
            values; a number of values outside [1, 4096]; a glob that matches no layer.
        OSError: the file cannot be written; an older one stands.
        TypeError: `pruned` is no Pruned, or `fine_tune` no function.
    """
    if not isinstance(pruned, Pruned):
        raise TypeError(
            f"`pruned` must be a Pruned as `prune` gives it, got {type(pruned).__name__}."
        )
    function("fine_tune", fine_tune, "that trains a model")
    if coder not in ("adaptive", "published"):
        raise unknown("coder", str(coder), ["adaptive", "published"])
    whole("bits", bits, low=1, high=published.MOST)
    if coder == "published" and (values is None or isinstance(values, RateDistortion)):
        raise ValueError(
            f"The published file shares values by number, got values={values!r}. Give a number, "
            f"or {{glob: number}}."
        )
    network = network_of(pruned, example)
    counts = _counts(network, values)
    _masked(network)
    model = copied(network.model)
    lam: float | None = None
    shared: dict[str, Shared]
    if isinstance(values, RateDistortion):
        masks = {name: network.mask(name) for name in network.weights}
        _finite(model, masks)
        shared, lam = searched(model, masks, values, progress=progress)
    else:
        _finite(model, counts)
        own = dict(model.named_parameters())
        shared = {n: share(network.mask(n), own[n], k) for n, k in counts.items()}
    if fine_tune is not None:
        _untied(network, shared)
        with held(model, {n: m for n, m in network.masks.items() if n not in shared}):
            shared = tuned(_put(model, shared), shared, fine_tune)
    _put(model, shared)
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    small = _halves(model, shared, values is not None if half is None else half)
    for name in small:
        state[name] = state[name].half().float()
    packed = pack(
        {k: v for k, v in state.items() if k not in network.ties},
        _coded(network, state, shared, coder, bits),
        {**_words(pruned), **network.words},
        half=small,
        progress=progress,
    )
    masks = {n: s.mask for n, s in shared.items() if n in network.masks or not s.mask.all()}
    result = with_state(pruned, network, state, {**network.masks, **masks}, bool(shared))
    target = write_bytes(path, packed.data)
    return _answer(target, result, pruned, packed, lam)


def _counts(network: Network, values: Values) -> dict[str, int]:
    """How many values each weight's layer is to share."""
    if values is None or isinstance(values, RateDistortion):
        return {}
    if not isinstance(values, Mapping):
        k = whole("values", values, low=1, high=MOST)
        return dict.fromkeys(network.weights, k)
    checked = {glob: whole(f"values[{glob!r}]", k, low=1, high=MOST) for glob, k in values.items()}
    found = {}
    for path, names in network.weights.items():
        glob = next((g for g in checked if any(matches(n, g) for n in (path, *names))), None)
        if glob is not None:
            found[path] = checked[glob]
    known = [name for path, names in network.weights.items() for name in (path, *names)]
    for glob in checked:
        if not any(matches(name, glob) for name in known):
            raise unknown("layer or glob", glob, known)
    return found


def _masked(network: Network) -> None:
    own = dict(network.model.named_parameters())
    for name, mask in network.masks.items():
        if bool((own[name].detach()[~mask] != 0).any()):
            raise ValueError(
                f"{name} is not zero outside its mask. Hold the masks while training: "
                f"pruned.hold(optimizer)."
            )


def _finite(model: nn.Module, names: Mapping[str, Any]) -> None:
    own = dict(model.named_parameters())
    for name in names:
        finite(name, own[name].detach(), "Shared values need finite weights.")


def _put(model: nn.Module, shared: Mapping[str, Shared]) -> nn.Module:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in shared.items():
            own[name].copy_(values.weight(own[name].dtype))
    return model


def _untied(network: Network, shared: Mapping[str, Shared]) -> None:
    for other, home in network.ties.items():
        if home in shared:
            raise ValueError(
                f"{home} and {other} are one tensor, whose shared values cannot be trained. Leave "
                f"the layer out of `values`, or give no `fine_tune`."
            )


def _halves(model: nn.Module, shared: Mapping[str, Shared], half: bool) -> frozenset[str]:
    """Names of the float32 parameters that are stored as float16."""
    if not half:
        return frozenset()
    return frozenset(
        name
        for name, value in model.named_parameters()
        if name not in shared
        and value.ndim < 2
        and value.dtype == torch.float32
        and bool((value.detach().abs() <= LARGEST).all())
    )


def _coded(
    network: Network,
    state: Mapping[str, Tensor],
    shared: Mapping[str, Shared],
    coder: str,
    bits: int,
) -> dict[str, Coded]:
    found = {}
    for name, own in shared.items():
        if len(own.book) == 0:  # nothing is kept
            found[name] = Coded(mask=own.mask.cpu())
            continue
        found[name] = Coded(
            mask=own.mask.cpu(),
            book=own.book,
            codes=own.codes.astype(np.uint16),
            coder=published.NAME if coder == "published" else None,
            bits=bits,
        )
    for name, mask in network.masks.items():
        if name in shared or name not in state:
            continue
        found[name] = Coded(mask=mask.cpu())
        state[name][~mask.cpu()] = 0.0  # no −0.0
    return found


def _words(pruned: Pruned) -> dict[str, str]:
    recipe = ", ".join(
        f"{f.name}={getattr(pruned.recipe, f.name)!r}"
        for f in fields(Recipe)
        if getattr(pruned.recipe, f.name) != getattr(DEFAULT, f.name)
    )
    return {
        "recipe": f"Recipe({recipe})",
        "name": pruned.name,
        "seed": str(pruned.seed),
        "prunus": prunus.__version__,
    }


def _answer(
    path: Path, result: Pruned, pruned: Pruned, packed: Packed, lam: float | None
) -> Compressed:
    dense = {id(p): p.numel() * p.element_size() for p in pruned.model.parameters()}
    return Compressed(
        path=path,
        pruned=replace(result, dense=pruned.dense),
        bytes=len(packed.data),
        dense_bytes=sum(dense.values()),
        parts=packed.parts,
        layers=packed.layers,
        lam=lam,
    )


DEFAULT = Recipe()

"""The calibration of all processes of a group, from the parts that each of them has seen."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunus.calibration.statistics import Source, Statistic
from prunus.calibration.sums import Sums
from prunus.layer import Layer
from prunus.rows import RowSet

__all__ = ["Account", "account_of", "gathered", "reduced_sums"]

# What must be equal everywhere, and how it is called; the cheapest to explain first.
ALIKE = {
    "statistics": "the same statistics",
    "weights": "layers with the same weights",
    "shapes": "the same sums of layers",
    "groups": "the same groups of channel classes",
}


Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Account:
    """What every process tells the others before any tensor is sent.

    Attributes:
        weights: {layer: hash of its weight}.
        statistics: {name: how it is written}.
        shapes: {layer: {statistic: shape of its sums}}.
        groups: {group of channel classes: {statistic: shape of its sums}}.
        counts: {layer or group: vectors in its sums, by source}.
        fingerprint: of the data.
        samples: number of them.
        rows: which samples; None where unknown.
    """

    weights: Mapping[str, str]
    statistics: Mapping[str, str]
    shapes: Shapes
    groups: Shapes
    counts: Mapping[str, Mapping[Source, int]]
    fingerprint: str
    samples: int
    rows: RowSet | None


def account_of(
    layers: Mapping[str, Layer],
    sums: Mapping[str, Sums],
    groups: Mapping[str, Sums],
    statistics: Mapping[str, Statistic],
    fingerprint: str,
    samples: int,
    rows: RowSet | None,
) -> Account:
    """This process's account."""
    return Account(
        weights={name: _digest(layer.weight) for name, layer in layers.items()},
        statistics={name: repr(statistic) for name, statistic in statistics.items()},
        shapes=_shapes(sums),
        groups=_shapes(groups),
        counts={name: dict(s.counts) for name, s in {**groups, **sums}.items()},
        fingerprint=fingerprint,
        samples=samples,
        rows=rows,
    )


def _shapes(sums: Mapping[str, Sums]) -> Shapes:
    return {name: {k: tuple(t.shape) for k, t in s.totals.items()} for name, s in sums.items()}


def gathered(own: Account, group: Any) -> list[Account]:
    """The accounts of all processes in the order of their ranks, refused alike by all of them.

    Raises:
        RuntimeError: no process group was made.
        ValueError: the processes have calibrated different models, layers or statistics.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "`all_reduce` needs the processes to know each other, and there is no process group. "
            "Call torch.distributed.init_process_group first, or add calibrations with +."
        )
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, own, group=group)
    for rank, other in enumerate(found[1:], start=1):
        for key, what in ALIKE.items():
            one, two = _differing(getattr(found[0], key), getattr(other, key))
            if one or two:
                raise ValueError(
                    f"Only calibrations of {what} can be reduced: rank 0 has {one}, rank {rank} "
                    f"has {two}. Give every process the same model (broadcast its weights, as "
                    f"DistributedDataParallel does) and the same arguments."
                )
    return found


def reduced_sums(
    sums: Mapping[str, Sums],
    accounts: list[Account],
    statistics: Mapping[str, Statistic],
    group: Any,
) -> dict[str, Sums]:
    """Merged sums, one flat float64 tensor for each layer and process.

    The parts are merged in the order of the ranks by what each statistic says of merging, so that
    every process holds the same bits, and the same as calibrations added in this order give. For W
    processes that sends W broadcasts; memory is three times one layer's sums.
    """
    import torch.distributed as dist

    place = _place(group)
    me = dist.get_rank(group)
    result: dict[str, Sums] = {}
    for name in sorted(sums):
        own = sums[name]
        totals: dict[str, Tensor] | None = None
        for rank in range(len(accounts)):
            flat = _flat(own.totals, place) if rank == me else _empty(own.totals, place)
            source = rank if group is None else dist.get_global_rank(group, rank)
            dist.broadcast(flat, src=source, group=group)
            part = _parts(flat, own.totals)
            totals = part if totals is None else {
                key: statistics[key].merge(totals[key], value) for key, value in part.items()
            }  # fmt: skip
        counts: dict[Source, int] = {}
        for entry in accounts:
            for key, count in entry.counts.get(name, {}).items():
                counts[key] = counts.get(key, 0) + count
        home = {key: value.device for key, value in own.totals.items()}
        result[name] = replace(
            own,
            counts=counts,
            totals={key: value.to(home[key]) for key, value in (totals or {}).items()},
        )
    return {name: result[name] for name in sums}


def _place(group: Any) -> torch.device:
    """Where tensors must lie to be sent."""
    import torch.distributed as dist

    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _flat(totals: Mapping[str, Tensor], place: torch.device) -> Tensor:
    parts = [
        value.detach().to(place, torch.float64).reshape(-1) for _, value in sorted(totals.items())
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=place)


def _empty(totals: Mapping[str, Tensor], place: torch.device) -> Tensor:
    return torch.empty(sum(v.numel() for v in totals.values()), dtype=torch.float64, device=place)


def _parts(flat: Tensor, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ordered = sorted(totals.items())
    pieces = flat.split([value.numel() for _, value in ordered])  # type: ignore[no-untyped-call]
    return {k: p.view(v.shape) for (k, v), p in zip(ordered, pieces, strict=True)}


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    head = f"{tuple(tensor.shape)}{tensor.dtype}".encode()
    return hashlib.sha256(head + flat.tobytes()).hexdigest()


def _differing(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first entry in which two mappings differ; nothing where they are equal."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)][:1]
    return {key: one.get(key) for key in keys}, {key: other.get(key) for key in keys}

"""The channels of a residual stream rotated to its principal axes, for networks of RMS norms.

An RMS norm without weights commutes with rotations. Once the weight γ of every norm is folded into
the layers that read it, one orthogonal Q serves the whole stream: tables become E Q, what reads
becomes W diag(γ) Q, what writes Qᵀ W, and γ = 1. The network computes what it did; channels of the
stream are then directions by falling variance, so that `Node` can leave the last ones out.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import Batches, call, first_of, parts, to_device
from prunus.calibration.place import device_of
from prunus.coupling import Group, Slot, coupling_of
from prunus.hints import Batch
from prunus.modes import copied, evaluating, private
from prunus.progress import progress_bar
from prunus.surgery.norms import is_rms, norms_across, rms_offset
from prunus.surgery.verify import verify_equal

__all__ = ["rotated"]


def rotated(model: nn.Module, data: Any, *, progress: bool | None = None) -> nn.Module:
    """A copy of a network whose residual stream is rotated to its principal axes.

    Q are the eigenvectors of the mean Gram matrix of all norms' inputs divided by their root mean
    square, by falling eigenvalue; padding (`attention_mask`) does not count.

    Args:
        model: a decoder, say, whose stream passes RMS norms alone and starts at embeddings; its
            head is not tied to them. It is left as it is.
        data: batches.
        progress: show a bar.

    Returns:
        A copy of the same classes, verified equal on the first samples.

    Raises:
        ValueError: no such stream, or something in it does not commute with rotations (a layer
            norm, a scale of its own, a tied head, a layer that reads it behind no norm).
        CompactionError: the rotated network differs.

    References:
        Ashkboos et al. (2024), SliceGPT: compress large language models by deleting rows and
        columns, Sec. 3; there one Q per block and an adapter in every shortcut, here one Q.
    """
    with private(model) as own:
        batches = Batches(data)
        example = to_device(first_of(batches.peek(), 2), device_of(own))
        stream = _stream(own, coupling_of(own, example).groups)
        work = copied(own)
        norms = norms_across(work, stream)
        readers = _readers(work, stream, norms, example)
        gram = _gram(work, norms, batches, progress)
        _, vectors = torch.linalg.eigh(gram)
        with torch.no_grad():
            for norm, names in readers.items():
                _fold(work, norm, names)
            _turn(work, stream, vectors.flip(1))
        verify_equal(own, work, example, kept={}, rtol=1e-4)
        return work


def _stream(model: nn.Module, groups: tuple[Group, ...]) -> Group:
    found = [g for g in groups if g.embeddings and norms_across(model, g)]
    if len(found) != 1:
        raise ValueError(
            f"A rotation needs one residual stream that starts at embeddings and passes norms, got "
            f"{len(found)}. Use Node() on the network as it is."
        )
    (stream,) = found
    if stream.raw:
        raise ValueError(
            f"A rotation turns what layers read and make, and code multiplies by "
            f"`{stream.raw[0]}` without one. Use Node() on the network as it is."
        )
    norms = norms_across(model, stream)
    other = [name for name in norms if not is_rms(model.get_submodule(name))]
    if other:
        kind = type(model.get_submodule(other[0])).__name__
        raise ValueError(
            f"A rotation commutes with RMS norms alone, and `{other[0]}` is a {kind}. Use Node() "
            f"on the network as it is."
        )
    _check_slots(model, stream, norms)
    return stream


def _check_slots(model: nn.Module, stream: Group, norms: list[str]) -> None:
    state = dict(model.named_parameters())
    scales = {f"{name}.weight" for name in norms}
    made = {name for names in (stream.producers, stream.embeddings) for name in names}
    both: dict[str, set[str]] = {}
    for slot in stream.slots:
        tensor = state.get(slot.parameter)
        owner = slot.parameter.rpartition(".")[0]
        both.setdefault(slot.parameter, set()).add(slot.role)
        wide = tensor is not None and tensor.ndim <= 2 and tensor.shape[slot.axis] == stream.size
        order = torch.equal(slot.index, torch.arange(stream.size))
        if not (wide and order and torch.equal(slot.unit, slot.index)):
            raise ValueError(f"`{slot.parameter}` does not hold the stream's channels in order.")
        fine = slot.role == "in" or owner in made or slot.parameter in scales
        if not fine:
            raise ValueError(
                f"`{slot.parameter}` scales or shifts single channels of the stream, which does "
                f"not commute with rotations."
            )
    tied = [name for name, roles in both.items() if len(roles) > 1]
    if tied:
        raise ValueError(
            f"A rotation folds the last norm into the head, which `{tied[0]}` also is as an "
            f"embedding. Give the head a weight of its own first (tie_word_embeddings=False)."
        )


def _readers(
    model: nn.Module, stream: Group, norms: list[str], example: Batch
) -> dict[str, list[str]]:
    """The layers that read each norm's output, found by the tensors they are given."""
    given: dict[str, Tensor] = {}
    found: dict[str, list[str]] = {name: [] for name in norms}
    lost: list[str] = []

    def after(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        given[name] = output

    def before(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        where = args[0].untyped_storage()._cdata  # the norm's output, or a view of it
        own = [n for n, output in given.items() if output.untyped_storage()._cdata == where]
        (found[own[0]] if own else lost).append(name)

    with (
        _hooked(model, norms, after),
        _hooked(model, stream.consumers, before, pre=True),
        evaluating(model),
        torch.no_grad(),
    ):
        call(model, example)
    if lost:
        raise ValueError(
            f"`{lost[0]}` reads the stream, but not the output of a norm as it is, so that no norm "
            f"can be folded into it."
        )
    return {norm: list(dict.fromkeys(names)) for norm, names in found.items()}


@contextmanager
def _hooked(model: nn.Module, names: Any, hook: Any, *, pre: bool = False) -> Iterator[None]:
    handles = []
    for name in names:
        module = model.get_submodule(name)
        register = module.register_forward_pre_hook if pre else module.register_forward_hook
        handles.append(register(partial(hook, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gram(model: nn.Module, norms: list[str], batches: Batches, progress: bool | None) -> Tensor:
    total: list[Tensor] = []
    mask: list[Tensor | None] = [None]
    numbers = count()

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().double()
        x = x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        known = mask[0]
        rows = x[known != 0] if known is not None and known.shape == x.shape[:-1] else x
        rows = rows.flatten(0, -2)
        own = rows.T @ rows
        total[:] = [total[0] + own] if total else [own]

    where = device_of(model)
    with (
        _hooked(model, norms, note, pre=True),
        evaluating(model),
        torch.no_grad(),
        progress_bar("axes of the stream", None, progress=progress) as advance,
    ):
        for batch in batches:
            for part in parts(batch):
                here = to_device(part, where)
                found = here.get("attention_mask") if isinstance(here, Mapping) else None
                mask[0] = found if isinstance(found, Tensor) else None
                call(model, here, next(numbers))
            advance(1)
    if not bool(torch.isfinite(total[0]).all()):
        raise ValueError("The stream has NaN or infinite values on the data. Check the inputs.")
    return total[0]


def _fold(model: nn.Module, norm: str, readers: list[str]) -> None:
    module: Any = model.get_submodule(norm)
    scale = module.weight.double() + rms_offset(module)
    for name in readers:
        weight: Any = model.get_submodule(name).weight
        weight.copy_(weight.double() * scale)
    module.weight.fill_(1.0 - rms_offset(module))


def _turn(model: nn.Module, stream: Group, turn: Tensor) -> None:
    state = dict(model.named_parameters())
    scales = {f"{name}.weight" for name in norms_across(model, stream)}
    done: set[int] = set()
    for slot in stream.slots:
        tensor = state[slot.parameter]
        if slot.parameter in scales or id(tensor) in done:
            continue
        done.add(id(tensor))
        tensor.copy_(_turned(slot, tensor.double(), turn))


def _turned(slot: Slot, tensor: Tensor, turn: Tensor) -> Tensor:
    """x Q along the slot's axis: of columns that read or tables, and of rows that write."""
    return (tensor.movedim(slot.axis, -1) @ turn.to(tensor.device)).movedim(-1, slot.axis)

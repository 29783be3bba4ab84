"""Operations on values at the same position, and tensors made from nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.coupling.calls import Call, Rule, Trace
from prunus.coupling.labels import CONSTANT, DATA, DRAWN, FIRST, WRITTEN, broadcast

__all__ = ["RULES", "after_constant_map", "constant", "elementwise", "fixed", "named"]

# Maps of one parameter, or sums of two, that make no infinity of the zeros of a removed channel.
FINITE_AT_ZERO = tuple(
    f"aten.{name}" for name in ("add", "sub", "rsub", "mul", "neg", "sigmoid", "tanh", "exp")
)
LINEAR_IN_EACH = ("aten.add", "aten.sub", "aten.rsub", "aten.mul")


def named(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several operations of torch."""
    return {f"aten.{name}": rule for name in names.split()}


def after_constant_map(trace: Trace, tensor: Tensor, labels: Tensor, operation: str) -> Tensor:
    """Labels after a fixed map of each value: raw parameters are no longer themselves."""
    atoms = labels < 0
    if not bool(atoms.any()):
        return labels
    trace.pin(tensor, f"{operation} computes other values from it")
    return torch.where(atoms, torch.full_like(labels, DATA), labels)


def elementwise(trace: Trace, call: Call) -> Tensor:
    """What meets at a position becomes one class.

    Raw parameters may scale or shift classes; in any other operation they count as data, since a
    removed class sets them to zero (and might divide by it).
    """
    tensors = call.tensors()
    parts = [trace.read_statistics(tensor) for tensor in tensors]
    if (
        call.name in FINITE_AT_ZERO
        and len(parts) <= 2
        and all(bool((part < 0).any()) for part in parts)
    ):
        parts = _computed(trace, parts)
    elif not (call.name in LINEAR_IN_EACH and len(parts) > 1):
        parts = [
            after_constant_map(trace, tensor, part, call.name)
            for tensor, part in zip(tensors, parts, strict=True)
        ]
    labels = parts[0]
    shape = list(tensors[0].shape)
    for tensor, part in zip(tensors[1:], parts[1:], strict=True):
        labels = _met(trace, labels, part, call.name, (shape, tensor.shape))
        shape = broadcast(shape, tensor.shape)
    if call.name in LINEAR_IN_EACH and not bool((labels < 0).any()):
        _pin_computed(trace, tensors, parts, labels, call.name)
    return labels


def _computed(trace: Trace, parts: list[Tensor]) -> list[Tensor]:
    """Labels in which entries of parameters that are mapped, or meet one another, go on."""
    if len(parts) == 1:
        (part,) = parts
        entries = part < 0
        found = part.clone()
        found[entries] = trace.computed(part[entries])
        return [found]
    one, other = torch.broadcast_tensors(*parts)  # type: ignore[no-untyped-call]
    both = (one < 0) & (other < 0)
    if not bool(both.any()):
        return parts
    one, other = one.clone(), other.clone()
    one[both] = trace.computed(one[both], other[both])
    other[both] = CONSTANT
    return [one, other]


def _met(
    trace: Trace,
    one: Tensor,
    other: Tensor,
    operation: str,
    sizes: tuple[Sequence[int], Sequence[int]],
) -> Tensor:
    """Labels of two operands, either of which may be a statistic: a number of several classes.

    It may scale a class (a norm by hand), and be changed by constants; with anything else it
    refuses the classes that it is computed from.
    """
    if not trace.labels.has_statistics:
        return trace.labels.meet(one, other, operation, sizes)
    told, other_told = trace.labels.is_statistic(one), trace.labels.is_statistic(other)
    if not bool(told.any()) and not bool(other_told.any()):
        return trace.labels.meet(one, other, operation, sizes)
    fixed_one = torch.where(told, torch.full_like(one, CONSTANT), one)
    fixed_other = torch.where(other_told, torch.full_like(other, CONSTANT), other)
    result = trace.labels.meet(fixed_one, fixed_other, operation, sizes)
    one, other, told, other_told, result = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
        one, other, told, other_told, result
    )
    both = told & other_told
    trace.labels.unite(one[both], other[both])
    alone = told ^ other_told
    number, partner = torch.where(told, one, other), torch.where(told, other, one)
    scales = operation == "aten.mul" or (operation == "aten.div" and not bool((told & alone).any()))
    beside = alone & ((partner >= FIRST) if not scales else (partner < CONSTANT))
    beside |= alone & (partner == DATA)
    reason = f"{operation} takes a mean or a norm over it elsewhere"
    trace.labels.refuse(trace.labels.sources(number[beside]), reason)
    trace.labels.refuse(partner[beside], reason)
    result = torch.where(both, one, result)
    fixed = (partner >= CONSTANT) & (partner < FIRST) & (partner != DATA)
    result = torch.where(alone & fixed, number, result)
    return torch.where(beside, torch.full_like(result, DATA), result)


def _pin_computed(
    trace: Trace, tensors: list[Tensor], parts: list[Tensor], labels: Tensor, operation: str
) -> None:
    """Parameters that were combined with no class have become values of their own."""
    data = (labels == DATA).expand(labels.shape)
    for tensor, part in zip(tensors, parts, strict=True):
        if bool((part < 0).any()) and bool((data & (part < 0)).any()):
            trace.pin(tensor, f"{operation} computes other values from it")


def constant(trace: Trace, call: Call) -> Tensor:
    """A tensor made from nothing, of a size that the code writes down, or drawn at random."""
    del trace
    drawn = torch.Tag.nondeterministic_seeded in call.operation.tags
    kind = (DRAWN if drawn else WRITTEN) if call.out.numel() > 1 else CONSTANT
    return torch.full((1,) * call.out.ndim, kind, device="cpu")


def unset(trace: Trace, call: Call) -> Tensor:
    """Memory that nothing has been written to yet."""
    del trace
    return torch.full((1,) * call.out.ndim, DATA, device="cpu")


def fixed(trace: Trace, call: Call) -> tuple[Tensor, ...]:
    """Values that no channel changes."""
    del trace
    return tuple(torch.full((1,) * t.ndim, CONSTANT, device="cpu") for t in call.outputs)


def identity(trace: Trace, call: Call) -> Tensor:
    """Copies, casts and dropout."""
    return trace.read_statistics(call.tensors()[0])


def copied(trace: Trace, call: Call) -> Tensor:
    """What is written over a tensor; its old values do not matter."""
    labels = trace.read(call.arguments["src"])
    return labels.reshape((1,) * (call.out.ndim - labels.ndim) + tuple(labels.shape))


def glu(trace: Trace, call: Call) -> Tensor:
    """A gated half: the value and its gate are one class."""
    inputs = call.arguments["self"]
    labels = trace.read(inputs)
    axis = call.arguments.get("dim", -1) % labels.ndim
    wide = [inputs.shape[a] if a == axis else n for a, n in enumerate(labels.shape)]
    value, gate = labels.expand(wide).chunk(2, dim=axis)
    return after_constant_map(trace, inputs, trace.labels.meet(value, gate, call.name), call.name)


def prelu(trace: Trace, call: Call) -> Tensor:
    """A ReLU with a learned slope, one for all channels or one per channel."""
    inputs, slope = call.arguments["self"], call.arguments["weight"]
    labels = after_constant_map(trace, inputs, trace.read(inputs), call.name)
    return trace.labels.meet(labels, trace.read(slope), call.name)


RULES: dict[str, Rule] = {
    # Those that torch does not tag as point-wise.
    **named("where hardswish log_sigmoid log_sigmoid_forward", elementwise),
    **named("masked_fill dropout rrelu_with_noise celu", elementwise),
    **named("clone contiguous alias detach native_dropout _to_copy lift_fresh_copy", identity),
    **named("lift_fresh view_copy", identity),
    **named("copy", copied),
    **named("glu", glu),
    **named("_prelu_kernel prelu", prelu),
    **named("zeros_like ones_like full_like", fixed),
    **named("new_zeros new_ones new_full fill zero", constant),
    **named("rand_like randn_like randint_like bernoulli normal uniform", constant),
    **named("empty empty_like new_empty empty_strided new_empty_strided", unset),
}

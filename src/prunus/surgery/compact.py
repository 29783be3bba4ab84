"""A physically smaller dense copy of a pruned model, deduced from its zeros and verified equal."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import plainly
from prunus.coupling import Coupling, Group, Heads, NotTraceable, coupling_of
from prunus.hints import Batch
from prunus.modes import private, twin
from prunus.surgery.alike import Gone, Spare
from prunus.surgery.configs import follow_config, has_config
from prunus.surgery.cut import cut, why_whole
from prunus.surgery.dead import dead_units, fold
from prunus.surgery.pinned import PinnedChannels, emptied, loosened, none_of, said_of
from prunus.surgery.proof import Proof
from prunus.surgery.readings import run
from prunus.surgery.rebuilt import shapes_of
from prunus.surgery.removals import removal_of
from prunus.surgery.verify import CompactionError, Reference, verify_equal
from prunus.threads import sparing

__all__ = ["Compaction", "CompactionError", "compact", "compact_groups"]


@dataclass(frozen=True, eq=False)
class Compaction:
    """A smaller network.

    Attributes:
        model: it.
        change: ‖small(x) − masked(x)‖ / ‖masked(x)‖ on the example where norms lost part of what
            their statistics ran over, else None: the two are equal.
        gave: what it gives on the example.
        said: whether its configuration says its widths, and a network that its class builds from
            it, given its tensors, is this one.
        pinned: {group: how many of its dead classes stay, and why}.
    """

    model: nn.Module
    change: float | None = None
    gave: Any = None
    said: bool = False
    pinned: Mapping[str, str] = field(default_factory=dict)


@plainly
@sparing
def compact(
    model: Any,
    example: Batch,
    *,
    rtol: float = 1e-4,
    inexact: bool | None = None,
    spare: Spare | None = None,
) -> nn.Module:
    """A smaller dense network that computes what the given one does, without its dead units.

    A unit (channel class, see `prunus.coupling`) goes when every consumer either has only zero
    columns for it, or reads from it a constant c that no input changes; c is then folded into
    the consumer's bias, b ← b + W_j c, which is added where there is none. The unit stays where
    c ≠ 0 meets zero padding (at the border it is no constant), where a norm's statistics would
    change, and where the model's code holds to the width, as the trace shows or as shows itself in
    a smaller network that fails or differs; all else goes. One removal can empty other units, so
    this repeats until nothing changes. Every layer keeps at least one unit.

    An RMS norm that loses inputs which are always zero is corrected exactly: d of them become d′,
    its weight γ √(d/d′) and its epsilon ε d/d′.

    Constants are those of eval mode. In training mode a batch norm of a constant channel emits
    its shift whatever the running mean says, so that a folded constant which has passed a batch
    norm is exact in eval mode only; units that emit nothing, as those that `Node` pruning
    removes, are exact in both.

    The configuration of a Hugging Face model follows where it can say the new widths.

    Args:
        model: a module, or anything with `.model`, such as a `Pruned`; left as it is.
        example: one batch (tensor, tuple whose first element is the input, or mapping): the
            model is traced, constants are read and the result is verified on it.
        rtol: largest accepted error, relative to max|output|. In float64 at most 1e-9 is
            accepted, in half precision at least 8 times the precision's rounding.
        inexact: also cut units over which a layer or group norm takes its statistics. The answer
            then equals the given network with these statistics taken over what stays, and is
            verified against that. None: as the recipe of a `Pruned` says, else no.
        spare: which dead units go all the same, from those that could; see `prunus.surgery.alike`.

    Returns:
        A copy with the same classes of modules, dtype, device, training flags and requires_grad.

    Warns:
        PinnedChannels: dead channels stay, since the model's code or a norm holds to their number.

    Raises:
        CompactionError: the model cannot be traced, does not run on the example or gives numbers
            there that nothing can be compared with; or what is pruned goes by itself (blocks,
            experts) and the smaller network fails or differs.
    """
    module: nn.Module = model if isinstance(model, nn.Module) else model.model
    granularity: Any = getattr(getattr(model, "recipe", None), "granularity", None)
    if inexact is None:
        inexact = bool(getattr(granularity, "inexact", False))
    known = getattr(model, "coupling", None)  # a `Pruned` keeps what its pruning has found
    removal = removal_of(granularity)
    if removal is not None:
        with private(module) as own:
            return removal.small(own, model.masks, granularity, example, rtol)
    proved: Proof | None = getattr(model, "proved", None)
    if spare is None and proved is not None and proved.serves(module, example, rtol, inexact):
        small, gave, said = proved.network(), proved.gave, proved.said
    else:
        heads: Heads = getattr(granularity, "heads", "kv")
        found = _cut(module, known, heads, example, rtol=rtol, inexact=inexact, spare=spare)
        small, gave, said = found.model, found.gave, found.said
        if found.pinned:
            warnings.warn(
                f"Dead channels stay in the smaller network, zeros as they are: "
                f"{'; '.join(found.pinned.values())}. Where the forward code writes a width down, "
                f"as in x.view(-1, 400), take it from the tensor, as in x.flatten(1).",
                PinnedChannels,
                stacklevel=4,
            )
    if not said and any(map(has_config, small.modules())):
        follow_config(small, shapes_of(module), example, gave)
    return small


def _cut(
    module: nn.Module,
    known: Coupling | None,
    heads: Heads,
    example: Batch,
    *,
    rtol: float,
    inexact: bool,
    spare: Spare | None,
) -> Compaction:
    """The smaller network, found, cut and compared."""
    with private(module) as own:
        try:
            groups = (known or coupling_of(own, example, heads)).groups
        except NotTraceable as reason:
            raise CompactionError(f"The model cannot be made smaller: {reason}.") from reason
        return compact_groups(
            own, groups, example, rtol=rtol, inexact=inexact, spare=spare, pinning=True
        )


def compact_groups(
    model: nn.Module,
    groups: Sequence[Group],
    example: Batch,
    *,
    rtol: float = 1e-4,
    inexact: bool = False,
    spare: Spare | None = None,
    running: Callable[[nn.Module, Any], Any] = run,
    pinning: bool = False,
) -> Compaction:
    """`compact` for a model whose groups are known; those that cannot be cut stay whole.

    `running` runs the smaller network on the example, at last as it is handed out. Where the
    network without all dead classes fails or differs, `pinning` finds groups that can stay as
    they are, so that the rest goes; else that is an error.
    """
    small = twin(model)  # shares the numbers of all parameters that are not cut
    why = {g.name: why_whole(small, g, inexact=inexact) for g in groups}
    whole = tuple(g for g in groups if why[g.name] is not None)
    given, groups = groups, tuple(g for g in groups if why[g.name] is None)
    reference = Reference(model, example)

    def dead(small: nn.Module) -> dict[str, Tensor]:
        gone = _empty(small, groups, example)
        return gone if spare is None else spare(groups, gone)

    def without(small: nn.Module, gone: Gone) -> Compaction:
        gave: Any = None

        def noting(small: nn.Module, batch: Any) -> Any:
            nonlocal gave
            gave = running(small, batch)
            return gave

        shapes = shapes_of(model) if has_config(model) else None
        left = cut(small, groups, gone, example, reference=reference, running=noting, whole=shapes)
        change = verify_equal(
            model,
            small,
            example,
            kept=left.kept,
            rtol=rtol,
            statistics=left.statistics,
            running=noting,
            reference=reference,
            got=left.gave,
        )
        return Compaction(small, change, gave, left.said)

    could = dead(small)
    stay = emptied(small, whole, example) if pinning else {}
    gone: Gone = could
    try:
        found = without(small, gone)
    except CompactionError:
        if not pinning:
            raise
        small = twin(model)
        dead(small)  # as it was before the cut
        without(twin(small), none_of(gone))  # one that differs from itself has no smaller one
        gone, reasons = loosened(groups, gone, lambda those: without(twin(small), those))
        found = without(twin(small), gone)
        why |= reasons
        stay |= {name: could[name] & ~gone[name] for name in reasons}
    _apart(model, found.model)
    told = {g.name: said_of(g, stay[g.name], str(why[g.name])) for g in given if g.name in stay}
    return replace(found, pinned=told) if told else found


def _apart(model: nn.Module, small: nn.Module) -> None:
    """Give a twin copies of the numbers that it still shares."""
    shared = {p.untyped_storage()._cdata for p in model.parameters()}
    for parameter in small.parameters():
        if parameter.untyped_storage()._cdata in shared:
            parameter.data = parameter.data.clone()


def _empty(model: nn.Module, groups: tuple[Group, ...], example: Batch) -> dict[str, Tensor]:
    """Fold and zero dead units until none is left; return the classes of each group that can go."""
    state = model.state_dict(keep_vars=True)
    left = {
        (slot.parameter, slot.axis): state[slot.parameter].shape[slot.axis]
        for group in groups
        for slot in group.slots
    }
    alive = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    changed = True
    while changed:
        changed = False
        found = dead_units(model, groups, alive, example)
        for group, dead in zip(groups, found, strict=True):
            going = dead.units.clone()
            if not going.any():
                continue
            most = min(
                (left[s.parameter, s.axis] - 1) // (s.unit.numel() // group.size)
                for s in group.slots
            )
            spared = going.nonzero().flatten()[: max(0, int(going.sum()) - most)]
            going[spared] = False  # the lowest stay where a layer would be left without units
            if group.pools > 1:
                going = group.balanced(going)
            if not going.any():
                continue
            count = int(going.sum())
            for slot in group.slots:
                left[slot.parameter, slot.axis] -= count * (slot.unit.numel() // group.size)
            alive[group.name] &= ~going
            if bool((going & ~dead.blank).any()):  # else nothing moves, and nothing else can die
                fold(model, group, going & ~dead.blank, dead.inputs)
                changed = True
    return {name: ~units for name, units in alive.items()}

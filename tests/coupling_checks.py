"""What holds a coupling against the network itself, far from any one example."""

import torch
from torch import Tensor, nn

from prunus.coupling import Group
from prunus.coupling.run import outputs_of


def few_of(group: Group):
    """Up to three classes: the first, the last, and one between."""
    units = sorted({0, group.size // 2, group.size - 1})
    classes = group.classes
    return [classes[unit] for unit in units]


def moved(model: nn.Module, members, *inputs: Tensor, **keywords) -> float:
    """Largest change of the outputs when `in` columns are zero and `out` rows are redrawn.

    The rows are set to numbers in [0.5, 1.5), then to zero. A row that is a column of the same
    tensor at once (an embedding tied to the head) stays zero.
    """
    state = model.state_dict()
    saved = {m.parameter: state[m.parameter].clone() for m in members}
    read = {(state[m.parameter].data_ptr(), m.axis) for m in members if m.role == "in"}
    generator = torch.Generator().manual_seed(7)

    def run() -> list[Tensor]:
        with torch.random.fork_rng():
            return [t.clone() for t in outputs_of(model(*inputs, **keywords))]

    def fill(role: str, draw) -> list[Tensor]:
        for m in members:
            slot = state[m.parameter]
            if m.role == role and not (role == "out" and (slot.data_ptr(), m.axis) in read):
                target = slot.select(m.axis, m.index)
                target.copy_(draw(target.shape))
        return run()

    with torch.no_grad():
        before = fill("in", torch.zeros)
        redrawn = fill("out", lambda shape: torch.rand(shape, generator=generator) + 0.5)
        zeroed = fill("out", torch.zeros)
        for name, value in saved.items():
            state[name].copy_(value)
    changes = [
        float((one - other).abs().max())
        for after in (redrawn, zeroed)
        for one, other in zip(after, before, strict=True)
        if one.is_floating_point() and one.numel()
    ]
    return max(changes, default=0.0)

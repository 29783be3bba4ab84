"""A narrower stream in classes that scale their embeddings by √width, as Gemma's do.

The class takes the factor from the width that its configuration says. From √d it becomes √d′, so
that the table takes √(d/d′); a head that is the table too reads a last norm that takes the inverse.
"""

from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import drawing, quiet
from prunus.modes import evaluating
from prunus.surgery.configs import changed_configs
from prunus.surgery.norms import is_rms, rms_offset
from prunus.surgery.readings import run
from prunus.surgery.rebuilt import Shapes, check_config
from prunus.surgery.verify import relative_change

__all__ = ["rescaled"]

CLOSE = 1e-5


def rescaled(small: nn.Module, before: Shapes, example: Any) -> nn.Module | None:
    """A network of the same class, built from a configuration that says its widths; or None.

    Args:
        small: a network whose embeddings have lost columns, left as it is.
        before: the shapes of the tensors in the network it was made from.
        example: one batch, on which both must agree.
    """
    tables = _cut_tables(small, before)
    if len(set(tables.values())) != 1:
        return None
    was, now = next(iter(tables.values()))
    share = (was / now) ** 0.5
    after = {name: tensor.shape for name, tensor in small.state_dict().items()}
    expected = run(small, example)
    for config in changed_configs(small.config, before, after, small):
        again = _built(small, config)
        if again is None:
            continue
        with torch.no_grad():
            for name in tables:
                _table(again, name).mul_(share)
        if relative_change(expected, run(again, example)) <= CLOSE:
            return again
        last = _last_norm(again, example)  # of which a tied head makes its tokens
        if last is not None:
            _divide(again.get_submodule(last), share)
            if relative_change(expected, run(again, example)) <= CLOSE:
                return again
    return None


def _table(model: nn.Module, name: str) -> Tensor:
    found: Any = model.get_submodule(name)
    weight: Tensor = found.weight
    return weight


def _cut_tables(small: nn.Module, before: Shapes) -> dict[str, tuple[int, int]]:
    """{embedding: (width before, width now)} of those that have become narrower."""
    found = {}
    for name, module in small.named_modules():
        if isinstance(module, nn.Embedding):
            was, now = before[f"{name}.weight"][1], module.weight.shape[1]
            if was != now:
                found[name] = (was, now)
    return found


def _built(small: nn.Module, config: Any) -> nn.Module | None:
    """A network of the class from a configuration, with the small one's tensors."""
    kind: Any = type(small)
    try:
        check_config(config)
        with quiet():
            again: nn.Module = drawing([torch.default_generator], lambda: kind(config))
        like: Tensor = next(small.parameters())
        again = again.to(device=like.device, dtype=like.dtype).eval()
        again.load_state_dict(small.state_dict())
    except Exception:  # whatever the library says to a configuration that it does not take
        return None
    return again


def _last_norm(model: nn.Module, example: Any) -> str | None:
    """The RMS norm that runs last."""
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.named_modules()
        if is_rms(module)
    ]
    try:
        with evaluating(model):
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return ran[-1] if ran else None


def _divide(norm: Any, factor: float) -> None:
    offset = rms_offset(norm)
    with torch.no_grad():
        norm.weight.copy_((norm.weight.double() + offset) / factor - offset)

"""Which modules of a model are layers to prune, and why the others are not."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from prunus.check import unknown
from prunus.layer import view_of

__all__ = ["matching", "prunable"]


def prunable(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Modules with a weight view by name, and {name: reason} for other modules with weights.

    A tensor that several modules share is refused in each of them, so that it is never pruned
    twice.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False):
            owner = f"{name}.{key}" if name else key
            owners.setdefault(id(parameter), []).append(owner)
    found: dict[str, nn.Module] = {}
    refused: dict[str, str] = {}
    attention = {
        f"{name}.out_proj" if name else "out_proj"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    for name, module in model.named_modules():
        weights = {k: p for k, p in module.named_parameters(recurse=False) if p.ndim >= 2}
        if not weights:
            continue
        kind = type(module).__name__
        weight = weights.get("weight")
        shared = [] if weight is None else _others(owners[id(weight)], f"{name}.weight".lstrip("."))
        if name in attention:
            refused[name] = "nn.MultiheadAttention uses it as a raw parameter"
        elif view_of(module) is None:
            refused[name] = (
                f"{kind} has no weight view; register one with prunus.layer.register_view"
            )
        elif shared:
            refused[name] = f"its weight is tied to {', '.join(shared)}"
        elif not isinstance(weight, Tensor):
            refused[name] = f"{kind} holds no parameter named weight"
        else:
            found[name] = module
    return found, refused


def _others(names: list[str], own: str) -> list[str]:
    return [name for name in names if name != own]


def matching(
    names: Sequence[str],
    layers: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    refused: dict[str, str],
) -> list[str]:
    """The names that `layers` selects (all where None) less those that `exclude` matches.

    Raises:
        ValueError: a name or glob matches nothing, or a layer asked for by its name is refused.
    """

    def globs(given: str | Sequence[str] | None) -> list[str]:
        return [] if given is None else [given] if isinstance(given, str) else list(given)

    for glob in [*globs(layers), *globs(exclude)]:
        if not any(fnmatchcase(name, glob) for name in [*names, *refused]):
            raise unknown("layer or glob", glob, [*names, *refused])
    for glob in globs(layers):
        if glob in refused:
            raise ValueError(f"Layer {glob!r} cannot be pruned: {refused[glob]}.")
    kept = [
        name
        for name in names
        if (layers is None or any(fnmatchcase(name, g) for g in globs(layers)))
        and not any(fnmatchcase(name, g) for g in globs(exclude))
    ]
    if not kept:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise ValueError(
            f"The model has no prunable layers left to select from ({len(names)} found"
            f"{', refused: ' + reasons if reasons else ''}). Check `layers` and `exclude`."
        )
    return kept

"""Which modules of a model are layers to prune, and why the others are not."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from prunus.calibration.reasons import listed, no_view, obstacle, quantised, type_name
from prunus.calibration.view_check import check_round_trip
from prunus.check import globs, meant, unknown
from prunus.weights import Weight, weights_of

__all__ = ["check_ready", "matching", "prunable", "to_calibrate"]


def check_ready(model: nn.Module) -> None:
    """Refuse a model that cannot be copied as it is.

    A model that lies on the meta device as a whole can: its weights are refused one by one.

    Raises:
        ValueError: a parameter or buffer has no shape yet (lazy modules), or a part is not loaded.
    """
    held = (part for m in model.modules() for part in (m._parameters, m._buffers) if part)
    if not any(t is not None and (t.is_meta or is_lazy(t)) for own in held for t in own.values()):
        return
    tensors = [*model.named_parameters(), *model.named_buffers()]

    def owners(chosen: Iterable[str]) -> str:
        names = (name.rpartition(".")[0] or "the model itself" for name in chosen)
        return ", ".join(dict.fromkeys(names))

    lazy = owners(name for name, tensor in tensors if is_lazy(tensor))
    if lazy:
        raise ValueError(
            f"The model is not ready: {lazy} have no shapes yet (lazy modules). Run it on one "
            f"batch first."
        )
    unloaded = [name for name, tensor in tensors if tensor.is_meta]
    if 0 < len(unloaded) < len(tensors):
        raise ValueError(
            f"The model is not ready: {owners(unloaded)} lie on the meta device, so are not "
            f"loaded. Load their weights first."
        )


def prunable(
    model: nn.Module, *, asked: bool = False, known: Mapping[str, Weight] | None = None
) -> tuple[dict[str, Weight], dict[str, str]]:
    """The weights that can be pruned, and {name: reason} for those that cannot.

    The matrices of recurrent layers and of attention are pruned on request: without one (`asked`,
    which is whether the caller was given `layers`) they are left whole and named, so that a
    recipe keeps the layers, and a density the denominator, that it has always had.

    A tensor that several modules share is refused in each of them, so that it is never pruned
    twice. One module object under several names is one module. A reason carries the name of its
    layer, or of the module where no view knows that. `known` is what `weights_of` says.

    Raises:
        ValueError: a parameter has no shape yet (lazy modules), a part is not loaded, or a user's
            view does not undo itself.
    """
    check_ready(model)
    modules = dict(model.named_modules())
    owners: dict[int, list[str]] = {}
    for owner, module in modules.items():
        for key, parameter in module.named_parameters(recurse=False) if module._parameters else ():
            owners.setdefault(id(parameter), []).append(f"{owner}.{key}" if owner else key)
    found: dict[str, Weight] = {}
    refused: dict[str, str] = {}
    known = weights_of(model) if known is None else known
    adapters = tuple(
        f"{name}.{part}."
        for name, module in modules.items()
        if isinstance(getattr(module, "base_layer", None), nn.Module)
        for part, _ in module.named_children()
        if part != "base_layer"
    )
    layers = [weight for weight in known.values() if not weight.source.hidden]
    seen, paths = {weight.owner for weight in layers}, {weight.path for weight in known.values()}
    for name, weight in known.items():
        why = obstacle(weight.module, weight.source.parameter)
        if why is None:
            shared = [n for n in owners.get(id(weight.parameter), []) if n != weight.path]
            why = f"its weight is tied to {', '.join(shared)}" if shared else None
        if why is None and weight.source.on_request and not asked:
            place = f"{weight.owner}.*" if weight.owner else "*"
            why = (
                f"the matrices of {type_name(weight.module)} are pruned where `layers` names them, "
                f"as layers={place!r} does"
            )
        if why is None and f"{weight.owner}.".startswith(adapters):
            why = (
                "it belongs to an adapter of PEFT, which stays dense; the layer under it is "
                "pruned, and prunus.integrations.merge_adapters merges without losing zeros"
            )
        if why is None:
            check_round_trip(weight)
            found[name] = weight
        else:
            refused[name] = why
    inside = tuple(f"{weight.path}." for weight in layers)
    holders = {weight.path.rpartition(".")[0] for weight in layers}
    for name, module in modules.items():
        if name in seen or name in holders or ".parametrizations" in f".{name}":
            continue
        if f"{name}.".startswith(inside):
            continue
        why = quantised(module)
        if why is not None:
            inside += (f"{name}." if name else "",)  # its parts need no reason of their own
        own = [
            p
            for key, p in module._parameters.items()
            if p is not None and p.ndim >= 2 and (f"{name}.{key}" if name else key) not in paths
        ]
        if why is None and own:
            why = no_view(module)
        if why is not None:
            refused[name] = why
    return found, refused


def to_calibrate(model: nn.Module, layers: str | Sequence[str] | None) -> list[str] | None:
    """What to calibrate for prunings of these layers: they, and all that are pruned unasked.

    None where `layers` is. What is no weight, as an embedding, is left out.
    """
    asked = globs("layers", layers)
    if asked is None:
        return None
    known, _ = prunable(model, asked=True, known=weights_of(model, asked))
    found = dict.fromkeys(prunable(model)[0])
    found |= dict.fromkeys(n for n, w in known.items() if _any_meant((n, *w.homes), asked))
    return list(found)


def _any_meant(names: Sequence[str], chosen: Sequence[str]) -> bool:
    return any(meant(name, chosen) for name in names)


def matching(
    names: Mapping[str, Weight] | Sequence[str],
    layers: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    refused: dict[str, str],
) -> list[str]:
    """The names that `layers` selects (all where None) less those that `exclude` matches.

    The name of a module that holds several weights means all of them.

    Raises:
        ValueError: a name or glob matches nothing, or a layer asked for by its name is refused.
    """
    asked, left_out = globs("layers", layers), globs("exclude", exclude) or ()
    homes = {n: w.homes for n, w in names.items()} if isinstance(names, Mapping) else {}

    def chosen(name: str, by: Sequence[str]) -> bool:
        return _any_meant((name, *homes.get(name, ())), by)

    for glob in [*(asked or ()), *left_out]:
        known = any(chosen(name, [glob]) for name in [*names, *refused])
        if not known and not any(name.startswith(f"{glob}.") for name in refused):
            raise unknown("layer or glob", glob, [*names, *refused])
    for glob in asked or ():
        if glob in refused:
            raise ValueError(f"Layer {glob!r} cannot be pruned: {refused[glob]}.")
    kept = [
        name
        for name in names
        if (asked is None or chosen(name, asked)) and not chosen(name, left_out)
    ]
    if not kept:
        raise ValueError(
            f"The model has no prunable layers left to select from ({len(names)} found"
            f"{', refused: ' + listed(refused) if refused else ''}). Check `layers` and `exclude`."
        )
    return kept

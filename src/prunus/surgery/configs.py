"""Widths that a model's configuration holds, as Hugging Face's do: they follow what was cut.

No family is known by name. Fields of the configuration that held an old width are set to the new
one, and a model built from it must have the cut tensors' shapes, and give the same output.
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.hints import Batch
from prunus.surgery.norms import is_rms
from prunus.surgery.readings import run
from prunus.surgery.rebuilt import (
    Blueprint,
    Shapes,
    copied_config,
    differences,
    fields_of,
    put_fields,
    shapes_of,
    with_tensors,
)
from prunus.surgery.verify import relative_change

__all__ = [
    "Configured", "UnsaidWidths", "changed_configs", "configured", "follow_config", "has_config",
    "step_of",
]  # fmt: skip


class UnsaidWidths(UserWarning):
    """A configuration has no fields for the widths that a network has got."""


Change = dict[str, Any]
Lengths = dict[tuple[str, int], list[tuple[int, int]]]
HEADS = ("num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "n_heads")
INNER = ("n_inner", "ffn_dim", "intermediate_size", "ffn_hidden_size", "d_ff")
EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "eps")
LARGEST = 64  # sets of fields that are tried
CLOSE = 1e-4


@dataclass(frozen=True, eq=False)
class Configured:
    """What a cut network is told to be the one that its class makes of a configuration.

    Attributes:
        change: {field: value} of the configuration.
        numbers: {(module, attribute): value}.
    """

    change: Change
    numbers: dict[tuple[str, str], int]


def configured(small: Any, before: Shapes) -> Configured | None:
    """The first change of the configuration that says what was cut, where nothing else differs.

    Args:
        small: a network, its tensors already cut; left as it is.
        before: the tensors' shapes in the network it was made from.

    Returns:
        With these fields and numbers, `small` is what its class makes of the changed configuration
        and the stored tensors, so that what holds of the one holds of the other. None where no
        field says the widths, or where the two differ in anything else.
    """
    if not has_config(small):
        return None
    after = shapes_of(small)
    lengths = _lengths(before, after)
    if not lengths or _uneven(lengths) is not None:
        return None
    for change, built in _said(small, before, after, lengths):
        numbers = differences(small, built, change)
        return None if numbers is None else Configured(change, numbers)
    return None


def has_config(module: Any) -> bool:
    """Whether a library writes a module with its configuration."""
    config = getattr(module, "config", None)
    return hasattr(module, "save_pretrained") and hasattr(config, "to_dict")


def follow_config(
    small: nn.Module, before: Shapes, example: Batch = None, gave: Any = None
) -> None:
    """Let the configuration say the widths that the smaller network has, where it can.

    Args:
        small: the smaller network; models in it with `config` and `save_pretrained` are looked at.
        before: the tensors' shapes in the network it was made from.
        example: one batch, on which a model rebuilt from the configuration must agree.
        gave: what the smaller network gives on it, where it has run.

    Warns:
        UnsaidWidths: no configuration says these widths, so that `from_pretrained` will not take
            what `save_pretrained` writes.
    """
    done: list[str] = []
    for name, module in small.named_modules():
        inner = any(name == outer or name.startswith(f"{outer}.") or not outer for outer in done)
        if inner or not has_config(module):
            continue
        done.append(name)
        start = f"{name}." if name else ""
        own = {k.removeprefix(start): v for k, v in before.items() if k.startswith(start)}
        _follow(module, own, *((None, None) if name else (example, gave)))


def _follow(module: Any, before: Shapes, example: Batch, gave: Any) -> None:
    after = shapes_of(module)
    lengths = _lengths(before, after)
    if not lengths:
        return
    uneven = _uneven(lengths)
    if uneven is None:
        for change, built in _said(module, before, after, lengths):
            if example is None or _gives(built, module, example, gave):
                put_fields(module.config, change)
                return
        said = ", ".join(f"{name.replace('#', '*')}: {p[0][0]} to {p[0][1]}" for (name, _), p in
                         list(lengths.items())[:2])  # fmt: skip
    else:
        widths = sorted({new for _, new in lengths[uneven]})
        said = f"{uneven[0].replace('#', '*')} has widths {', '.join(map(str, widths))}"
    warnings.warn(
        f"The configuration of {type(module).__name__} cannot say what was cut ({said}), so that "
        f"`from_pretrained` will not load what `save_pretrained` writes. Save it with "
        f"`Pruned.save`, or prune all blocks alike: Node(alike='blocks').",
        UnsaidWidths,
        stacklevel=5,
    )


def _said(
    module: Any, before: Shapes, after: Shapes, lengths: Lengths
) -> Iterator[tuple[Change, nn.Module]]:
    """Changes of a configuration by which the class has these tensors, with what it makes then."""
    epsilon = _epsilon(module, module.config)
    blueprint = Blueprint(module, before)
    others: list[Change] = []
    for change, parts in itertools.islice(_changes(module.config, _pairs(lengths)), LARGEST):
        change |= epsilon
        if not blueprint.foresees(parts, after):
            others.append(change)
        elif (built := blueprint.built(change, after)) is not None:
            yield change, built
    for change in others:  # whose fields may bear on one another
        if blueprint.may(change, after) and (built := blueprint.built(change, after)) is not None:
            yield change, built


def _gives(built: nn.Module, module: nn.Module, example: Batch, gave: Any) -> bool:
    """Whether a model of a changed configuration, with a module's tensors, gives what it gives."""
    try:
        expected = run(module, example) if gave is None else gave
        got = run(with_tensors(built, module), example)
        return relative_change(_tensors(expected), _tensors(got)) < CLOSE
    except Exception:  # whatever the library says to tensors that it does not take
        return False


def changed_configs(
    config: Any, before: Shapes, after: Shapes, small: nn.Module | None = None
) -> Iterator[Any]:
    """Copies of a configuration that may say the tensors' new shapes, the plainest first.

    None where tensors that differ in the numbers of their names alone became unlike. The epsilon
    of corrected RMS norms is that of `small`, where it is given.
    """
    lengths = _lengths(before, after)
    if _uneven(lengths) is not None:
        return
    epsilon = {} if small is None else _epsilon(small, config)
    for change, _ in itertools.islice(_changes(config, _pairs(lengths)), LARGEST):
        trial = copied_config(config)
        put_fields(trial, {**change, **epsilon})
        yield trial


def _pairs(lengths: Lengths) -> list[tuple[int, int]]:
    """What lengths became of which, each once."""
    return list(dict.fromkeys(pair for found in lengths.values() for pair in found))


def _uneven(lengths: Lengths) -> tuple[str, int] | None:
    """A tensor, and its axis, that became unlike in different blocks; None if there is none."""
    return next((key for key, pairs in lengths.items() if len(pairs) > 1), None)


def _lengths(before: Shapes, after: Shapes) -> Lengths:
    """What became of the axes of tensors, those of all blocks together, where one was cut."""
    found: dict[tuple[str, int], dict[tuple[int, int], None]] = {}
    for name, shape in after.items():
        for axis, (new, old) in enumerate(zip(shape, before.get(name, shape), strict=True)):
            key = (".".join("#" if p.isdigit() else p for p in name.split(".")), axis)
            found.setdefault(key, {})[old, new] = None
    return {
        key: list(pairs) for key, pairs in found.items() if any(old != new for old, new in pairs)
    }


def _changes(config: Any, pairs: list[tuple[int, int]]) -> Iterator[tuple[Change, list[Change]]]:
    """Sets of fields that may say these lengths, with what says which; the plainest first."""
    choices = [list(enumerate(_fields(config, old, new))) for old, new in pairs]
    seen: list[Change] = []
    for ranked in sorted(itertools.product(*choices), key=lambda c: sum(rank for rank, _ in c)):
        merged: Change = {}
        fits = all(merged.setdefault(k, v) == v for _, part in ranked for k, v in part.items())
        if fits and merged not in seen:
            seen.append(merged)
            yield dict(merged), [part for _, part in ranked if part]


def _fields(config: Any, old: int, new: int) -> list[Change]:
    """What may say that a length became another one, the likeliest first; nothing at the end."""
    same: list[str] = []
    found: list[Change] = []
    for path, value in fields_of(config):
        leaf = path.rpartition(".")[2]
        if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
            continue
        if value == old:
            same.insert(0, path)
        elif value is None and leaf in INNER:
            found.append({path: new})
        elif value and leaf in HEADS and value * new % old == 0:
            found.extend(_heads(config, path, int(value), int(value) * new // old))
        elif leaf == "mlp_ratio" and value and old % value == 0:
            ratio = new / (old / value)
            if ratio.is_integer() or isinstance(value, float):
                found.append({path: type(value)(ratio)})
    sets = (
        dict.fromkeys(paths, new)
        for count in range(1, min(len(same), 3) + 1)
        for paths in itertools.combinations(same, count)
    )  # several at once, where encoder and decoder have one width
    return [*sets, *found, {}]


def _heads(config: Any, path: str, before: int, now: int) -> list[Change]:
    """A number of heads, with and without their width, which may follow from it."""
    wide = getattr(config, "hidden_size", None)
    given = getattr(config, "head_dim", None) or (wide or 0) // before
    with_width = [{path: now, "head_dim": given}] if given else []
    if hasattr(config, "head_dim") or wide is None:
        return [*with_width, {path: now}]
    return [{path: now}, *with_width]  # classes look for `head_dim` where no field is declared


def step_of(config: Any, size: int) -> int:
    """The step in which a width of `size` can be said: more than 1 where a whole ratio says it."""
    for path, value in fields_of(config):
        if path.rpartition(".")[2] == "mlp_ratio" and type(value) is int and size % value == 0:
            return size // value
    return 1


def _epsilon(module: nn.Module, config: Any) -> Change:
    """The epsilon of RMS norms that were corrected, where all of them have one."""
    found = {
        float(value)
        for norm in module.modules()
        if is_rms(norm)
        for key in ("variance_epsilon", "eps")
        if isinstance(value := getattr(norm, key, None), float)
    }
    if len(found) != 1:
        return {}
    (value,) = found
    return {
        path: value
        for path, old in fields_of(config)
        if path.rpartition(".")[2] in EPSILONS and isinstance(old, float) and old != value
    }


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [v for v in values if isinstance(v, Tensor)]

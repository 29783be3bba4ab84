"""Widths that a model's configuration holds, as Hugging Face's do: they follow what was cut.

No family is known by name. Fields of the configuration that held an old width are set to the new
one, and a model built from it must have the cut tensors' shapes, and give the same output.
"""

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.ambient import drawing, quiet
from prunus.hints import Batch
from prunus.surgery.norms import is_rms
from prunus.surgery.readings import run
from prunus.surgery.verify import relative_change

__all__ = [
    "Shapes", "UnsaidWidths", "changed_configs", "check_config", "follow_config", "step_of",
]  # fmt: skip


class UnsaidWidths(UserWarning):
    """A configuration has no fields for the widths that a network has got."""


Shapes = Mapping[str, torch.Size]
Change = dict[str, Any]
HEADS = ("num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "n_heads")
INNER = ("n_inner", "ffn_dim", "intermediate_size", "ffn_hidden_size", "d_ff")
EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "eps")
LARGEST = 64  # sets of fields that are tried
DRAWN = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_",
         "xavier_uniform_", "xavier_normal_", "erfinv_")  # fmt: skip


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
        config = getattr(module, "config", None)
        inner = any(name == outer or name.startswith(f"{outer}.") or not outer for outer in done)
        if inner or not hasattr(module, "save_pretrained") or not hasattr(config, "to_dict"):
            continue
        done.append(name)
        start = f"{name}." if name else ""
        own = {k.removeprefix(start): v for k, v in before.items() if k.startswith(start)}
        _follow(module, config, own, *((None, None) if name else (example, gave)))


def _follow(module: nn.Module, config: Any, before: Shapes, example: Batch, gave: Any) -> None:
    after = {name: tensor.shape for name, tensor in module.state_dict().items()}
    lengths = _lengths(before, after)
    if not lengths:
        return
    uneven = next((key for key, pairs in lengths.items() if len(pairs) > 1), None)
    if uneven is None:
        pairs = list(dict.fromkeys(pair for found in lengths.values() for pair in found))
        for change in itertools.islice(_changes(config, pairs), LARGEST):
            change = {**change, **_epsilon(module, config)}
            if _fits(module, config, change, after, example, gave):
                _set(config, change)
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


def changed_configs(
    config: Any, before: Shapes, after: Shapes, small: nn.Module | None = None
) -> Iterator[Any]:
    """Copies of a configuration that may say the tensors' new shapes, the plainest first.

    None where tensors that differ in the numbers of their names alone became unlike. The epsilon
    of corrected RMS norms is that of `small`, where it is given.
    """
    lengths = _lengths(before, after)
    if any(len(pairs) > 1 for pairs in lengths.values()):
        return
    pairs = list(dict.fromkeys(pair for found in lengths.values() for pair in found))
    for change in itertools.islice(_changes(config, pairs), LARGEST):
        trial = copy.deepcopy(config)
        _set(trial, change if small is None else {**change, **_epsilon(small, config)})
        yield trial


def _lengths(before: Shapes, after: Shapes) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """What became of the axes of tensors, those of all blocks together, where one was cut."""
    found: dict[tuple[str, int], dict[tuple[int, int], None]] = {}
    for name, shape in after.items():
        for axis, (new, old) in enumerate(zip(shape, before.get(name, shape), strict=True)):
            key = (".".join("#" if p.isdigit() else p for p in name.split(".")), axis)
            found.setdefault(key, {})[old, new] = None
    return {
        key: list(pairs) for key, pairs in found.items() if any(old != new for old, new in pairs)
    }


def _changes(config: Any, pairs: list[tuple[int, int]]) -> Iterator[Change]:
    """Sets of fields that may say these lengths, the plainest first."""
    choices = [list(enumerate(_fields(config, old, new))) for old, new in pairs]
    seen: list[Change] = []
    for ranked in sorted(itertools.product(*choices), key=lambda c: sum(rank for rank, _ in c)):
        merged: Change = {}
        fits = all(merged.setdefault(k, v) == v for _, part in ranked for k, v in part.items())
        if fits and merged not in seen:
            seen.append(merged)
            yield merged


def _fields(config: Any, old: int, new: int) -> list[Change]:
    """What may say that a length became another one, the likeliest first; nothing at the end."""
    same: list[str] = []
    found: list[Change] = []
    for path, value in _walk(config):
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
    for path, value in _walk(config):
        if path.rpartition(".")[2] == "mlp_ratio" and type(value) is int and size % value == 0:
            return size // value
    return 1


def _walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a configuration and of those inside it, by its path."""
    for key, value in vars(config).items():
        if key.startswith("_"):
            continue
        if hasattr(value, "to_dict"):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(config: Any, change: Change) -> None:
    for path, value in change.items():
        *owners, leaf = path.split(".")
        home = config
        for owner in owners:
            home = getattr(home, owner)
        setattr(home, leaf, value)


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
        for path, old in _walk(config)
        if path.rpartition(".")[2] in EPSILONS and isinstance(old, float) and old != value
    }


class _Unset(TorchFunctionMode):
    """Parameters keep the memory they are made of: what is drawn for them would be written over."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = args[0] if args else (kwargs or {}).get("tensor")
        if isinstance(given, nn.Parameter) and getattr(func, "__name__", "") in DRAWN:
            return given
        return func(*args, **(kwargs or {}))


def _fits(
    module: nn.Module, before: Any, change: Change, after: Shapes, example: Batch, gave: Any
) -> bool:
    """Whether a model of the changed configuration has these shapes, and the same output."""
    kind: Any = type(module)
    try:
        config = copy.deepcopy(before)
        _set(config, change)
        check_config(config)
        with torch.device("meta"), quiet(), _Unset():
            built = kind(config)
        if {name: tensor.shape for name, tensor in built.state_dict().items()} != dict(after):
            return False
        if example is None:
            return True
        with quiet(), _Unset():
            again: nn.Module = drawing([torch.default_generator], lambda: kind(config))
        like: Tensor = next(module.parameters())
        again = again.to(device=like.device, dtype=like.dtype)
        again.load_state_dict(module.state_dict())
        expected = run(module, example) if gave is None else gave
        return relative_change(_tensors(expected), _tensors(run(again, example))) < 1e-4
    except Exception:  # whatever the library says to a configuration that it does not take
        return False


def check_config(config: Any) -> None:
    """Raise whatever the library says to values that it does not save, as `save_pretrained` does.

    A width that is no multiple of the heads is one, though a model of it can be built.
    """
    if hasattr(config, "validate"):
        config.validate()


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [v for v in values if isinstance(v, Tensor)]

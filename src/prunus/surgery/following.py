"""Numbers that modules keep beside their weights without a row for their class: heads, widths.

Names and values say which integers these may be, in the modules around what was cut. Which of
them the forward pass reads is not known, so that several readings are tried in order, and the
first with which the network computes what it did is kept.
"""

import copy
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from prunus.coupling import Group
from prunus.hints import Batch
from prunus.surgery.attributes import Cuts, has_row
from prunus.surgery.configs import Configured
from prunus.surgery.readings import run
from prunus.surgery.rebuilt import put_back, put_fields
from prunus.surgery.verify import relative_change

__all__ = ["follow", "keeps", "readings_of", "retold", "told"]

# {(module, attribute): new value}; "config.FIELD" for a field of a configuration of its own,
# "NAME[0]" for an entry of a tuple or list.
Reading = dict[tuple[str, str], int]
COUNTS = re.compile(r"heads?(_|$)|^(h|nh|n_h)$")
NO_COUNTS = re.compile(r"dim|size|width|channel|group|rep|scale")
REPEATS = re.compile(r"groups|rep")
KEYS = re.compile(r"kv|key_value")
CLOSE = 1e-4


def readings_of(
    model: nn.Module, groups: Sequence[Group], gone: Mapping[str, Tensor], cuts: Cuts
) -> list[Reading]:
    """What the modules around cut parameters may have to be told, the likeliest first.

    Args:
        model: the network as it was, with its old numbers.
        groups: that lose classes.
        gone: which, by group.
        cuts: {(parameter, axis): (length before, length after)}.
    """
    heads: Reading = {}
    wide: Reading = {}
    other: Reading = {}
    plain: Reading = {}
    own: Reading = {}
    near: Reading = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    loose = {place: module for place, module in modules.items() if not has_row(module)}
    listed = {place: list(_numbers(module)) for place, module in loose.items()}
    numbers = {place: found for place, found in listed.items() if found}
    alone = {place for place in numbers if _plain(loose[place])}
    for group in groups:
        left = group.size - int(gone[group.name].sum())
        if left == group.size:
            continue
        around = _around(loose, group)
        for place in _near(numbers, alone, around):
            lengths = _lengths(group, place.rpartition(".")[0], cuts)
            for name, value in numbers[place]:
                new = lengths.get(value)
                if new is not None or value == group.size:
                    near[place, name] = left if new is None else new
        for place in around:
            module = modules[place]
            integers = list(_integers(module))
            config = getattr(module, "config", None)
            if not integers and config is None:
                continue
            lengths = _lengths(group, place, cuts)
            for name, value in integers:
                new = _counted(name, value, group, left)
                if new is not None:
                    heads[place, name] = new
                elif value in lengths:
                    (wide if group.heads else other)[place, name] = lengths[value]
                elif value == group.size:
                    plain[place, name] = left
            for name, value in _integers(config):
                new = _counted(name, value, group, left)
                if new is not None:
                    own[place, f"config.{name}"] = new
    found: list[Reading] = []
    for reading in (
        {**wide, **heads},
        {**other, **wide, **heads},
        heads,
        {**other, **heads},
        {**wide, **heads, **own},
        {**plain, **heads},
        {**plain, **wide, **heads},
    ):
        if reading not in found:
            found.append(reading)
    return found + [{**near, **reading} for reading in found if near]


def follow(
    small: nn.Module,
    readings: Sequence[Reading],
    example: Batch,
    expected: Any,
    running: Callable[[nn.Module, Any], Any] = run,
    said: Configured | None = None,
) -> tuple[Any, bool]:
    """Tell the modules of a cut network what they have to know, in place.

    Args:
        small: the network, its tensors already cut.
        readings: from `readings_of`.
        example: one batch.
        expected: what the network gave on it before the cut.
        running: runs the cut network on it.
        said: what a network that its class builds has otherwise; tried before the readings.

    Returns:
        what the network gives with the reading that is kept (None where it has not run), and
        whether its configuration says its widths.
    """
    if said is not None:
        before = [*put_fields(small.config, said.change), *_tell(small, said.numbers)]
        got = _close(small, example, expected, running)
        if got is not None:
            return got, True
        put_back(before)
    for reading in readings:
        before = _tell(small, reading)
        if len(readings) == 1:
            return None, False
        got = _close(small, example, expected, running)
        if got is not None:
            return got, False
        put_back(before)
    _tell(small, readings[0])  # the verification says what is wrong
    return None, False


def told(dense: nn.Module, small: nn.Module) -> dict[str, dict[str, int]]:
    """{module: {attribute: number}} of what a cut network's modules were told, for `retold`."""
    found: dict[str, dict[str, int]] = {}
    shared = {id(module.config) for module in small.modules() if hasattr(module, "save_pretrained")}
    for name, module in small.named_modules():
        if has_row(module):
            continue
        before = dense.get_submodule(name)
        own = dict(_numbers(module)).items() - dict(_numbers(before)).items()
        config = getattr(module, "config", None)
        if config is not None and id(config) not in shared:
            fields = dict(_integers(config)).items() - dict(_integers(before.config)).items()
            own |= {(f"config.{field}", value) for field, value in fields}
        if own:
            found[name] = dict(sorted(own))
    return found


def keeps(module: nn.Module, name: str) -> bool:
    """Whether a module keeps a number under a name that `told` gave."""
    field = name.removeprefix("config.")
    if field != name:
        return field in dict(_integers(getattr(module, "config", None)))
    return name in dict(_numbers(module))


def retold(small: nn.Module, numbers: Mapping[str, Mapping[str, int]]) -> None:
    """Tell the modules of a rebuilt network what those of the stored one were told."""
    known = dict(small.named_modules())
    _tell(small, {(n, k): v for n, own in numbers.items() if n in known for k, v in own.items()})


def _close(
    small: nn.Module, example: Batch, expected: Any, running: Callable[[nn.Module, Any], Any]
) -> Any:
    """What the network gives where that is what is expected, else None."""
    try:
        got = running(small, example)
        change = relative_change(expected, got)
    except Exception:  # whatever the user's forward raises at sizes that it does not expect
        return None
    return got if change <= CLOSE else None  # never where it is no number


def _around(loose: Container[str], group: Group) -> dict[str, None]:
    """The modules that hold the group's layers, and those of its parameters that have no row."""
    found: dict[str, None] = {}
    for slot in group.slots:
        owner = slot.parameter.rpartition(".")[0]
        if owner in loose:
            found[owner] = None
        if owner:
            found[owner.rpartition(".")[0]] = None
    return found


def _near(places: Iterable[str], alone: Container[str], around: Collection[str]) -> list[str]:
    """Of some modules those farther out, and those beside them without parameters.

    Args:
        places: of modules without a row.
        alone: of those of them that compute by themselves, such as `nn.Unflatten`.
        around: of modules that hold what is cut.
    """
    above = {
        ".".join(parts[:depth])
        for parts in (place.split(".") for place in around)
        for depth in range(len(parts))
    }
    inner = {*above, *around}
    return [
        place
        for place in places
        if place not in around
        and (place in above or (place in alone and place.rpartition(".")[0] in inner))
    ]


def _plain(module: nn.Module) -> bool:
    """Whether a module computes by itself, without parameters."""
    childless = next(module.children(), None) is None
    return childless and next(module.parameters(recurse=False), None) is None


def _lengths(group: Group, place: str, cuts: Cuts) -> dict[int, int]:
    """What became of lengths of this group's slots inside a module, where that is one thing."""
    found: dict[int, set[int]] = {}
    for slot in group.slots:
        if not place or slot.parameter.startswith(f"{place}."):
            before, after = cuts.get((slot.parameter, slot.axis), (0, 0))
            if before != after:
                found.setdefault(before, set()).add(after)
    return {before: after.pop() for before, after in found.items() if len(after) == 1}


def _integers(owner: Any) -> Iterator[tuple[str, int]]:
    for name, value in vars(owner).items() if owner is not None else ():
        if type(value) is int and value > 0 and not name.startswith("_"):
            yield name, value


def _entries(owner: nn.Module) -> Iterator[tuple[str, int]]:
    """Whole numbers in the tuples and lists of a module, as shapes are."""
    for name, value in vars(owner).items():
        if isinstance(value, tuple | list) and not name.startswith("_"):
            for i, entry in enumerate(value):
                if type(entry) is int and entry > 0:
                    yield f"{name}[{i}]", entry


def _numbers(owner: nn.Module) -> Iterator[tuple[str, int]]:
    yield from _integers(owner)
    yield from _entries(owner)


def _counted(name: str, value: int, group: Group, left: int) -> int | None:
    """The new value of a number of heads, or of query heads for each kv head; else None."""
    if group.heads is None:
        return None
    if group.heads == "query":
        each = group.size // group.pools
        if REPEATS.search(name) and value == each:
            return left // group.pools
        counts = COUNTS.search(name) and not NO_COUNTS.search(name) and not KEYS.search(name)
        return left if counts and value == group.size else None
    counts = COUNTS.search(name) and not NO_COUNTS.search(name)
    return value * left // group.size if counts and value % group.size == 0 else None


def _tell(model: nn.Module, reading: Reading) -> list[tuple[Any, str, Any]]:
    before: list[tuple[Any, str, Any]] = []
    for (place, name), number in reading.items():
        value: Any = number
        home: Any = model.get_submodule(place)
        field = name.removeprefix("config.")
        if field != name:
            if not any(h is home and n == "config" for h, n, _ in before):
                before.append((home, "config", home.config))
                home.config = copy.copy(home.config)  # others go on reading theirs
            home = home.config
        field, _, at = field.partition("[")
        held = getattr(home, field)
        before.append((home, field, held))
        if at:
            entries = list(held)
            entries[int(at[:-1])] = value
            value = tuple(entries) if isinstance(held, tuple) else entries
        setattr(home, field, value)
    return before

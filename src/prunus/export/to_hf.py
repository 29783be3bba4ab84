"""Hugging Face's folder: a network that plain `from_pretrained` loads, compared before it stands.

A configuration has one field for a width of all blocks. The ways out are tried in this order: the
widths as they are; zero units stay where that makes blocks alike (padding); the configuration's
own field for widths of single layers; and where none of them loads, our own folder.
"""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import drawing, plainly, quiet
from prunus.calibration.batches import to_device
from prunus.calibration.place import device_of
from prunus.coupling import Group
from prunus.export.answer import Check, Export
from prunus.export.check import ExportError, held, output_of
from prunus.export.job import IDLE, Job, Shipped, Written, answer, entries
from prunus.files import new_folder, write_text
from prunus.hints import Batch
from prunus.host import versions
from prunus.modes import copied
from prunus.surgery.alike import Gone, Spare, by_blocks, by_sizes, levelled, only
from prunus.surgery.configs import UnsaidWidths, step_of
from prunus.surgery.layered import per_layer
from prunus.surgery.pinned import PinnedChannels
from prunus.surgery.rebuilt import check_config
from prunus.surgery.rescaled import rescaled
from prunus.surgery.verify import CompactionError

__all__ = ["save_hf", "write_hf"]

LIMIT = 1e-6  # of the largest output; measured 0.0
ACCOUNT = "prunus.json"
MOST = 8  # families of groups that are tried one by one


def save_hf(
    pruned: Any, folder: str | os.PathLike[str], *, example: Batch = None, tokenizer: Any = None
) -> Export:
    """Write a folder that `from_pretrained` loads; see `Pruned.save_hf`."""
    given = pruned.example if example is None else example
    if given is not None:
        given = to_device(given, device_of(pruned.model))
    job = Job(pruned=pruned, path=Path(folder), example=given)
    return answer("hf", write_hf(job, tokenizer), ())


@plainly
def write_hf(job: Job, tokenizer: Any = None) -> Written:
    """`save_hf` as a format.

    Raises:
        TypeError: the model has no configuration.
        ValueError: there is no example.
        OSError: the folder holds files, or the disk is full.
    """
    pruned, target, example = job.pruned, job.path, job.example
    if example is None:
        raise ValueError(
            "`save_hf` compares what it has written on an example, and this result has none. Pass "
            "example=, one batch."
        )
    _check_model(pruned.model)
    _check_target(target, pruned.model)
    refused: list[str] = []
    for found in _candidates(pruned, example):
        try:
            with new_folder(target) as aside:
                _check_room(found.model, aside)
                checked = _written(found.model, aside, example)
                _beside(aside, pruned, found, tokenizer)
        except ExportError as error:
            refused.append(str(error))
            continue
        return Written(network=found, files=_files(target), checked=checked)
    return _own_folder(pruned, target, example, refused)


def _check_model(model: nn.Module) -> None:
    if hasattr(model, "save_pretrained") and hasattr(getattr(model, "config", None), "to_dict"):
        return
    raise TypeError(
        f"`save_hf` is for models with a configuration and `save_pretrained`, as those of "
        f"transformers, got {type(model).__name__}. Use Pruned.save, or export another format."
    )


def _check_target(target: Path, model: nn.Module) -> None:
    """Raise where the model came from there."""
    source = getattr(model.config, "_name_or_path", "")
    if source and Path(source).exists() and target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the folder that the model came from. Give another one.")


def _candidates(pruned: Any, example: Batch) -> Iterator[Shipped]:
    """Networks that a stock class may build, the smallest first."""
    seen: list[tuple[Sequence[Group], Gone]] = []

    def watch(groups: Sequence[Group], gone: Gone) -> dict[str, Tensor]:
        seen.append((groups, gone))
        return dict(gone)

    try:
        exact = _compacted(pruned, example, watch)
    except CompactionError as error:
        yield Shipped(_masked(pruned), False, (f"{IDLE} {error}",))
        return
    smaller = entries(exact) < entries(pruned.model)
    if not smaller:
        yield Shipped(_masked(pruned), False, (IDLE,))
        return
    if _builds(exact):
        yield Shipped(exact, True, ("All blocks have the widths that the configuration says.",))
    before = {name: tensor.shape for name, tensor in pruned.model.state_dict().items()}
    scaled = rescaled(exact, before, example)
    if scaled is not None:
        said = (
            "All blocks have the widths that the configuration says; embeddings, which the class "
        )
        said += "scales by the root of the width, take the root of what it lost."
        yield Shipped(scaled, True, (said,))
    if not seen:  # blocks went, which are alike or not
        return
    groups, gone = seen[0]
    for spare, what in _paddings(pruned, example, groups, gone):
        padded = _building(pruned, example, spare)
        if padded is not None and entries(padded) < entries(pruned.model):
            said = (
                f"Padded: zero units stay so that {what}. It has {entries(padded):,} parameters, "
                f"{entries(exact):,} without (Pruned.save keeps those)."
            )
            yield Shipped(padded, True, (said,))
    if per_layer(exact, before) and _builds(exact):
        yield Shipped(exact, True, ("Widths of single layers stand in `per_layer_config`.",))


def _paddings(
    pruned: Any, example: Batch, groups: Sequence[Group], gone: Gone
) -> Iterator[tuple[Spare, str]]:
    """Which units may go so that widths come out that a configuration can say, and why."""
    losing = [g for g in groups if bool(gone[g.name].any())]
    for family, what in (
        (by_blocks, "all blocks are alike"),
        (by_sizes, "all parts of one width are alike"),
    ):
        level = levelled(family, lambda size: step_of(pruned.model.config, size))
        yield level, what
        families = list(dict.fromkeys(family(g) for g in losing))
        if len(families) > MOST:  # a convolutional network: every stage has its own widths
            continue
        said = [
            one
            for one in families
            if _building(pruned, example, only([one], family, level)) is not None
        ]
        if said and len(said) < len(families):
            left = [g.name for g in losing if family(g) not in said]
            yield (
                only(said, family, level),
                f"the configuration can say all widths; it cannot say those of {_some(left)}, "
                f"which keep their zeros",
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _compacted(pruned: Any, example: Batch, spare: Spare | None) -> nn.Module:
    with quiet(UnsaidWidths):  # whether it says the widths is told in the notes
        small: nn.Module = pruned.compact(example, spare=spare)
    return small.eval()


def _building(pruned: Any, example: Batch, spare: Spare) -> nn.Module | None:
    """The network without what `spare` lets go, where its configuration says what is left."""
    try:
        with quiet(PinnedChannels):  # one of several ways
            small = _compacted(pruned, example, spare)
    except CompactionError:  # as of parts that have to be equal
        return None
    return small if _builds(small) else None


def _masked(pruned: Any) -> nn.Module:
    masked: nn.Module = copied(pruned.model)
    return masked.eval()


def _builds(model: nn.Module) -> bool:
    """Whether the model's class, built from its configuration, has its tensors."""
    kind: Any = type(model)
    try:
        check_config(model.config)
        with torch.device("meta"), quiet():
            built: nn.Module = kind(copy.deepcopy(model.config))
    except Exception:  # whatever the library says to a configuration that it does not take
        return False
    return {k: t.shape for k, t in built.state_dict().items()} == {
        k: t.shape for k, t in model.state_dict().items()
    }


def _check_room(model: nn.Module, folder: Path) -> None:
    needed = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder.parent} has {free:,} bytes left and the network needs {needed:,}. Free some "
            f"space, or give another folder."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and warnings; an empty folder is no news to anybody."""
    from transformers.utils import logging as library

    logging: Any = library
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _written(model: nn.Module, folder: Path, example: Batch) -> tuple[Check, ...]:
    """Save, load by the class's own `from_pretrained`, and compare.

    Raises:
        ExportError: it does not load, misses tensors, or is another network.
    """
    kind: Any = type(model)
    implementation = getattr(model.config, "_attn_implementation", None)
    options = {} if implementation is None else {"attn_implementation": implementation}

    def load() -> tuple[nn.Module, dict[str, Any]]:
        found: tuple[nn.Module, dict[str, Any]] = kind.from_pretrained(
            folder, output_loading_info=True, **options
        )
        return found

    with _quiet():
        model.save_pretrained(folder)  # type: ignore[operator]
        try:
            again, said = drawing([torch.default_generator], load)
        except Exception as error:  # whatever the library says to a folder that it does not take
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(
                f"{kind.__name__}.from_pretrained does not load it: {lines[0]}"
            ) from error
    absent = sorted(map(str, [*said["missing_keys"], *said["mismatched_keys"]]))
    if absent:
        raise ExportError(
            f"{kind.__name__}.from_pretrained finds no values for {', '.join(absent[:3])}."
        )
    again = again.to(device_of(model)).eval()
    return held(model, lambda batch: output_of(again, batch), example, engine="torch", limit=LIMIT)


def _beside(folder: Path, pruned: Any, found: Shipped, tokenizer: Any) -> None:
    """What stands beside the weights: how they came about, and the tokenizer."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    facts = {
        "kind": "hf",
        "recipe": repr(pruned.recipe),
        "name": pruned.name,
        "seed": pruned.seed,
        "compact": found.compact,
        "route": found.notes[0],
        "density": pruned.plan.density,
        "data_fingerprint": pruned.data_fingerprint,
        "parameters": entries(found.model),
        "versions": versions(),
    }
    write_text(folder / ACCOUNT, json.dumps(facts, indent=1) + "\n")


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


def _own_folder(pruned: Any, target: Path, example: Batch, refused: list[str]) -> Written:
    """Our own format, with a text that says how it is read."""
    cut = [name for name, count in pruned.plan.kept.items() if count != 0]
    why = refused[-1] if refused else f"its configuration cannot say the widths of {_some(cut)}"
    kind = type(pruned.model).__name__
    with quiet(UnsaidWidths):
        pruned.save(target, example=example)
    write_text(
        target / "README.md",
        f"# A pruned {kind}\n\n`from_pretrained` does not load this folder: {why}.\n\n"
        f"    import prunus, transformers\n\n"
        f"    config = transformers.AutoConfig.from_pretrained(FOLDER)\n"
        f"    small = prunus.load(FOLDER, transformers.{kind}(config)).compact()\n",
    )
    config = json.dumps(pruned.model.config.to_dict(), indent=1, default=str)
    write_text(target / "config.json", config + "\n")
    with quiet(UnsaidWidths):
        small = pruned.reloaded(target).compact().eval()
    exact = _compacted(pruned, example, None)
    checked = held(
        exact,
        lambda batch: output_of(small, batch),
        example,
        engine="torch",
        limit=LIMIT,
    )
    said = (
        f"Our own folder, which `from_pretrained` does not load: {why}. README.md in it says how "
        f"prunus.load reads it."
    )
    return Written(network=Shipped(exact, True, (said,)), files=_files(target), checked=checked)

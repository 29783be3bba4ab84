"""The configuration of a folder whose blocks became narrower."""

import json
from pathlib import Path
from typing import Any

import torch

from prunus.files import write_text
from prunus.folder.bare import bare_model
from prunus.folder.checkpoint import INDEX, open_checkpoint
from prunus.folder.skeleton import Skeleton
from prunus.surgery.configs import changed_configs

__all__ = ["merged_config", "write_config"]


def write_config(skeleton: Skeleton, folder: Path) -> None:
    """Let `config.json` say the widths of the tensors in the folder.

    Fields that held an old width are set to the new one, and a model built from them must have
    the tensors' shapes, all of them.

    Raises:
        ValueError: no configuration says these widths, as where blocks became unlike.
    """
    table = json.loads((folder / INDEX).read_text())["weight_map"]
    found = open_checkpoint(folder).tensors
    keys = {key: name for name, key in skeleton.keys.items()}
    after = {keys[key]: torch.Size(found[key].shape) for key in table if key in keys}
    old = skeleton.checkpoint.tensors
    before = {keys[key]: torch.Size(old[key].shape) for key in table if key in keys}
    if before == after:
        return
    config: Any = skeleton.model.config
    for trial in changed_configs(config, before, after):
        try:
            state = bare_model(trial, skeleton.dtype).state_dict()
        except (ValueError, TypeError, RuntimeError, AttributeError, ZeroDivisionError):
            continue  # the class refuses such widths
        if all(name in state and state[name].shape == shape for name, shape in after.items()):
            path = folder / "config.json"
            write_text(path, merged_config(path.read_text(), config.to_dict(), trial.to_dict()))
            return
    changed = [n for n in after if after[n] != before[n]]
    said = ", ".join(f"{n}: {tuple(before[n])} to {tuple(after[n])}" for n in changed[:3])
    raise ValueError(
        f"No configuration of {type(skeleton.model).__name__} says what was cut ({said}). Prune "
        f"edges, or nodes of the mlp alone, all blocks alike."
    )


def merged_config(text: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """The text of a configuration in which the fields that differ are changed, and nothing else."""
    facts = json.loads(text)
    _merge(facts, before, after)
    return json.dumps(facts, indent=2) + "\n"


def _merge(facts: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    for key, value in after.items():
        if isinstance(value, dict) and isinstance(facts.get(key), dict):
            _merge(facts[key], before.get(key) or {}, value)
        elif value != before.get(key):
            facts[key] = value

"""`prunus.json` of a pruned folder: what was done, so that anybody can tell."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunus.files import write_text
from prunus.folder.needs import Needs
from prunus.folder.result import FolderResult, LayerAccount
from prunus.host import versions
from prunus.tokens import TokenSet

__all__ = ["ACCOUNT", "read_account", "write_account"]

ACCOUNT = "prunus.json"
KIND = "pruned-folder"


def write_account(folder: Path, result: FolderResult, settings: Mapping[str, Any]) -> None:
    """Write the account into the folder."""
    facts = {
        "format": 1,
        "kind": KIND,
        "name": result.name,
        "settings": dict(settings),
        "seed": result.seed,
        "layers": {n: asdict(own) for n, own in result.layers.items()},
        "not_pruned": dict(result.not_pruned),
        "tokens": result.tokens,
        "seen": result.seen.to_list(),
        "needs": asdict(result.needs),
        "seconds": result.seconds,
        "notes": list(result.notes),
        "versions": versions(),
    }
    write_text(folder / ACCOUNT, json.dumps(facts, indent=1) + "\n")


def read_account(folder: Path) -> tuple[FolderResult, dict[str, Any]] | None:
    """The account of a pruned folder and its settings; None where the file is another's.

    Raises:
        ValueError: it is truncated.
    """
    path = folder / ACCOUNT
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is truncated, or no account. Prune the folder again.") from None
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        return None
    try:
        result = FolderResult(
            folder=folder,
            recipe=facts["settings"]["recipe"],
            name=facts["name"],
            seed=facts["seed"],
            layers={n: LayerAccount(**own) for n, own in facts["layers"].items()},
            not_pruned=facts["not_pruned"],
            tokens=facts["tokens"],
            seen=TokenSet.from_list(facts["seen"]),
            needs=Needs(**facts["needs"]),
            seconds=facts["seconds"],
            notes=tuple(facts["notes"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks {error}. Prune the folder again.") from None
    return result, facts["settings"]

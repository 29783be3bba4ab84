"""`prunus.json` of a pruned folder: what was done, so that anybody can tell."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from prunus.files import write_text
from prunus.folder.needs import Needs
from prunus.folder.result import FolderResult, LayerAccount
from prunus.host import versions
from prunus.reading import Count, Schema, Spread, json_object, text_of, validated
from prunus.tokens import TokenSet

__all__ = ["ACCOUNT", "read_account", "write_account"]

ACCOUNT = "prunus.json"
KIND = "pruned-folder"


class _Settings(Schema):
    """What of the settings is looked at."""

    recipe: str


class _Facts(Schema):
    """`prunus.json`."""

    name: str
    settings: _Settings
    seed: int
    layers: dict[str, LayerAccount]
    not_pruned: dict[str, str]
    tokens: Count
    seen: list[Annotated[int, Field(ge=-(2**63), lt=2**63)]]
    needs: Needs
    seconds: Spread
    notes: list[str]
    gone: list[str] = Field(default_factory=list)  # older accounts have none


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
        "gone": list(result.gone),
        "versions": versions(),
    }
    write_text(folder / ACCOUNT, json.dumps(facts, indent=1) + "\n")


def read_account(folder: Path) -> tuple[FolderResult, dict[str, Any]] | None:
    """The account of a pruned folder and its settings; None where the file is another's.

    Raises:
        ValueError: it is truncated, or a field is not what it must be.
    """
    path = folder / ACCOUNT
    raw = json_object(text_of(path), path)
    if raw.get("kind") != KIND:
        return None
    facts = validated(raw, _Facts, path)
    result = FolderResult(
        folder=folder,
        recipe=facts.settings.recipe,
        name=facts.name,
        seed=facts.seed,
        layers=facts.layers,
        not_pruned=facts.not_pruned,
        tokens=facts.tokens,
        seen=TokenSet.from_list(facts.seen),
        needs=facts.needs,
        seconds=facts.seconds,
        notes=tuple(facts.notes),
        gone=tuple(facts.gone),
    )
    return result, raw["settings"]

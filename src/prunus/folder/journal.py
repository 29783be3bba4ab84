"""What of a folder is done: settings, accounts and files, so that a killed run goes on."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from prunus.files import write_text
from prunus.folder.result import BlockResult
from prunus.reading import Schema, read_json, text_of

__all__ = ["Journal"]

NAME = "progress.json"
FORMAT = 1


class _Facts(Schema):
    """`progress.json`."""

    format: int
    settings: dict[str, Any]
    blocks: list[BlockResult]
    apart: dict[str, BlockResult] = Field(default_factory=dict)


class Journal:
    """The journal of a folder under way.

    A block counts as done when the journal says so, which is written last: after its weights and
    after the stream behind it. Work that a killed run has begun is done again from the same files,
    and comes out the same.

    Attributes:
        blocks: accounts of those that are done, in order.
        apart: of those that were done in any order, by number.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Begin, or go on where an earlier run with the same settings was stopped.

        Raises:
            ValueError: there is a run with other settings, or `resume` is False and there is one.
        """
        self._path = folder / NAME
        self._settings = json.loads(json.dumps(settings))
        self.blocks: list[BlockResult] = []
        self.apart: dict[str, BlockResult] = {}
        if not self._path.is_file():
            self._write()
            return
        if not resume:
            raise ValueError(
                f"{folder} holds an unfinished pruning. Resume it, or remove the folder."
            )
        try:
            facts = read_json(text_of(self._path), _Facts, self._path)
        except ValueError as error:
            raise ValueError(f"{error} It is no journal; remove the folder {folder}.") from None
        known = facts.settings
        differing = [
            f"{key} (was {known.get(key)!r}, is {self._settings.get(key)!r})"
            for key in {**known, **self._settings}
            if known.get(key) != self._settings.get(key)
        ]
        if differing:
            raise ValueError(
                f"{folder} holds an unfinished pruning with other settings: "
                f"{'; '.join(differing)}. Resume with the same, or remove the folder."
            )
        self.blocks, self.apart = facts.blocks, facts.apart

    def done(self, block: BlockResult) -> None:
        """Note that one more block is done."""
        self.blocks.append(block)
        self._write()

    def done_apart(self, index: int, block: BlockResult) -> None:
        """Note that this block is done."""
        self.apart[str(index)] = block
        self._write()

    def again(self) -> None:
        """Nothing is done."""
        self.blocks.clear()
        self._write()

    def _write(self) -> None:
        facts = {
            "format": FORMAT,
            "settings": self._settings,
            "blocks": [asdict(block) for block in self.blocks],
            "apart": {index: asdict(block) for index, block in self.apart.items()},
        }
        write_text(self._path, json.dumps(facts, indent=1) + "\n")

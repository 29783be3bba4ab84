"""A folder in Hugging Face's layout, read tensor by tensor through maps of its files."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.check import brief
from prunus.folder.tensors import TYPES, Shape
from prunus.reading import Schema, json_object, text_of, validated

__all__ = ["Checkpoint", "Stored", "mapped", "open_checkpoint", "table_of"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
META = "__metadata__"
PROBES = 64  # places of a file that its fingerprint reads
PROBE = 4096  # bytes at each


class _Index(Schema):
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies.

    Attributes:
        file: name of the file in the folder.
        dtype: its type.
        shape: its shape.
        start: its first byte in the file.
    """

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.bytes_in(self.dtype)

    def within(self, file: Tensor) -> Tensor:
        """The tensor, as a view of its file's bytes (a copy where they lie at an odd place)."""
        own = file[self.start : self.start + self.bytes]
        if self.start % self.dtype.itemsize:
            own = own.clone()
        return own.view(self.dtype).view(self.shape)

    def bytes_in(self, dtype: torch.dtype) -> int:
        """Its size where floating numbers are of this type, as when the model runs."""
        kind = dtype if self.dtype.is_floating_point else self.dtype
        return kind.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose files were found whole; no weight is read yet.

    Attributes:
        folder: the folder.
        config: what `config.json` says.
        tensors: {name: where it lies}.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]

    @property
    def files(self) -> tuple[str, ...]:
        """The files with tensors, in order."""
        return tuple(sorted({stored.file for stored in self.tensors.values()}))

    def shape(self, name: str) -> Shape:
        """Type and shape of a tensor."""
        stored = self.tensors[name]
        return stored.dtype, stored.shape

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) in the order given; the tensors are maps of the files."""
        maps: dict[str, Tensor] = {}
        for name in names:
            stored = self.tensors[name]
            if stored.file not in maps:
                maps[stored.file] = mapped(self.folder / stored.file)
            yield name, stored.within(maps[stored.file])

    def fingerprint(self) -> str:
        """A hash of the configuration, the files' tables, sizes and samples of their bytes.

        Sixteen hexadecimal digits. A file is read at 64 places, so that folders of any size take
        milliseconds; other weights of a trained network differ in nearly every byte.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in self.files:
            path = self.folder / name
            size = path.stat().st_size
            with path.open("rb") as file:
                head = int.from_bytes(file.read(8), "little")
                digest.update(f"{name}{size}".encode() + file.read(head))
                for i in range(PROBES):
                    file.seek(8 + head + (size - 8 - head) * i // PROBES)
                    digest.update(file.read(PROBE))
        return digest.hexdigest()[:16]


def open_checkpoint(folder: Path) -> Checkpoint:
    """A folder with `config.json` and safetensors files, checked to be whole.

    Raises:
        FileNotFoundError: no folder, no configuration, no weights, or a file that the index names.
        ValueError: a file is truncated or no safetensors, the checkpoint is quantised, or its code
            comes with it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give one in Hugging Face's layout.")
    config = _json(folder / "config.json")
    kind = config.get("quantization_config")
    if kind is not None:
        method = kind.get("quant_method", "?") if isinstance(kind, dict) else kind
        raise ValueError(f"{folder} is quantised ({method}). Prune the float checkpoint.")
    if config.get("auto_map"):
        raise ValueError(
            f"{folder} needs code that comes with it (`auto_map` in config.json), which is not "
            f"run. Convert it to an architecture of transformers."
        )
    tensors: dict[str, Stored] = {}
    index = folder / INDEX
    named = _index(index) if index.is_file() else None
    for file in _files(folder):
        table = table_of(folder / file)
        own = table if named is None else {n: t for n, t in table.items() if named.get(n) == file}
        tensors.update(own)
    for name, file in (named or {}).items():
        if name not in tensors:
            raise ValueError(
                f"{index} names the tensor {name!r} in {file}, which has no such "
                f"tensor. Fetch the folder again."
            )
    return Checkpoint(folder, config, tensors)


def _files(folder: Path) -> list[str]:
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [SINGLE]
        shards = sorted(p.name for p in folder.glob("*.safetensors"))
        if shards:
            raise FileNotFoundError(
                f"{folder} has {shards[0]} ({len(shards)} such files) but no {INDEX}, which says "
                f"what belongs to the model. Fetch it too."
            )
        other = sorted(p.name for p in folder.glob("*.bin"))
        advice = (
            f" It has {other[0]}, which may hold code: load it with transformers and save it again."
            if other
            else " Give a folder that `save_pretrained` wrote."
        )
        raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}.{advice}")
    files = sorted(set(_index(index).values()))
    present = {path.name for path in folder.iterdir() if path.is_file()}
    for file in files:
        if Path(file).name != file:
            raise ValueError(f"{index} names {brief(file)!r}, which is no file of the folder.")
        if file not in present:
            raise FileNotFoundError(
                f"{index} names {brief(file)}, which is missing. Fetch it again."
            )
    return files


def mapped(path: Path) -> Tensor:
    """The bytes of a file, read where they are asked for; changes stay in memory.

    Not by safetensors' `get_tensor`, of which 64 bytes stay allocated after every call (0.8.0).
    """
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def table_of(path: Path) -> dict[str, Stored]:
    """The tensors of a file whose table and size fit."""
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    with path.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
        try:
            table = json.loads(file.read(head) if 0 < head <= size - 8 else b"")
            end = max((e["data_offsets"][1] for n, e in table.items() if n != META), default=0)
            whole = size == 8 + head + end
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{path} is truncated, or no safetensors file.") from None
    if not whole:
        raise ValueError(
            f"{path} is truncated: its table speaks of {8 + head + end} bytes, it has {size}. "
            f"Fetch it again."
        )
    try:
        with safe_open(path, framework="pt") as opened:  # holds shapes and offsets against the size
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({brief(str(error))}). Fetch it again.") from None
    found = {}
    for name, own in slices.items():
        if own.get_dtype() not in TYPES:
            raise ValueError(
                f"{path}: tensor {name!r} is of type {own.get_dtype()}. Prune the float checkpoint."
            )
        start = 8 + head + table[name]["data_offsets"][0]
        found[name] = Stored(path.name, TYPES[own.get_dtype()], tuple(own.get_shape()), start)
    return found


def _index(path: Path) -> dict[str, str]:
    return validated(_json(path), _Index, path).weight_map


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Give a folder that `save_pretrained` wrote.")
    return json_object(text_of(path), path)

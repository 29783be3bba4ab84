"""Which samples, and which network: a hash of every row of the data, and of a model's state."""

import base64
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from prunus.check import any_nan
from prunus.hints import Batch
from prunus.inputs import arguments, samples_of

__all__ = ["RowSet", "checksum", "row_hashes", "rows_of", "state_sum"]

ENTRIES = 2**15  # numbers that are hashed at a time, as a cache holds with what is made of them
WORDS = 2**16  # of eight bytes, summed up at a time, as a cache holds with their weights
SMALL = 2**12  # entries of tensors that are summed up side by side
HALF = np.uint64(32)
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
PADDING = "attention_mask"
BESIDE = (PADDING, "labels", "label_ids")  # what mappings of Hugging Face hold beside an input


@dataclass(frozen=True, eq=False)
class RowSet:
    """The samples that a pruning or a plan has seen.

    Attributes:
        hashes: one 64-bit number per distinct sample, ascending.
    """

    hashes: Int64[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.hashes)

    def __or__(self, other: "RowSet") -> "RowSet":
        return RowSet.of([self.hashes, other.hashes])

    @staticmethod
    def of(hashes: Iterable[Int64[Tensor, " samples"]]) -> "RowSet":
        """The set of all these hashes."""
        together = np.concatenate([np.empty(0, dtype=np.int64), *(h.numpy() for h in hashes)])
        return RowSet(torch.from_numpy(np.unique(together)))

    def to_text(self) -> str:
        """The set as text for a JSON file."""
        return base64.b64encode(self.hashes.numpy().astype("<i8").tobytes()).decode()

    @staticmethod
    def from_text(text: Any) -> "RowSet":
        """The set that `to_text` wrote.

        Raises:
            ValueError: it is no such text.
        """
        if not isinstance(text, str):
            raise ValueError("should be hashes in base64")
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise ValueError(f"should be hashes in base64 ({error})") from None
        if len(data) % 8:
            raise ValueError(f"should be hashes of eight bytes each, has {len(data)} bytes")
        hashes = np.frombuffer(data, dtype="<i8").astype(np.int64)
        if bool((hashes[1:] <= hashes[:-1]).any()):
            raise ValueError("should be different hashes in ascending order")
        return RowSet(torch.from_numpy(hashes))

    def among(self, hashes: Int64[Tensor, " samples"]) -> int:
        """How many of the samples with these hashes are in the set."""
        return int(torch.isin(hashes, self.hashes).sum())


def rows_of(batches: Iterable[Batch]) -> RowSet:
    """The samples of all batches."""
    return RowSet.of(map(row_hashes, batches))


def row_hashes(batch: Batch) -> Int64[Tensor, " samples"]:
    """A 64-bit hash of each sample's input, in the order of the batch.

    The same numbers give the same hash in any batch, order, shape, device and number format that
    float32 can hold: values are compared as float32, and −0 as 0. Of a tuple or list the first
    element is the input, so labels do not count; nor do a mapping's `labels`, constants beside the
    samples, positions that an `attention_mask` hides, or the name of an only tensor. A batch that
    cannot be cut into samples is one.
    h = Σ_j m_j mix(x_j) mod 2⁶⁴ over the bits of the values, with fixed odd multipliers m_j: two
    rows that differ collide with a probability of about 2⁻⁶⁴ over the choice of the multipliers.
    """
    args, kwargs = arguments(batch)
    given = args[0] if args else kwargs
    samples = samples_of(given)
    mask = kwargs.get(PADDING)
    inputs: list[tuple[str, Tensor]] = []
    for key, tensor in _tensors("", given):
        if key in BESIDE:
            continue
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if samples.mixed is not None:  # it runs whole, and is one sample
            tensor = tensor.reshape(1, -1)
        elif tensor.ndim and tensor.shape[0] != samples.size:  # a constant
            continue
        if isinstance(mask, Tensor) and tensor.shape == mask.shape:
            tensor = tensor * (mask != 0)
        inputs.append((key, tensor))
    if not inputs:
        return torch.empty(0, dtype=torch.int64)
    if len(inputs) == 1:  # a model that takes one tensor takes it by name or by place
        inputs = [("", inputs[0][1])]
    salted = [
        _hashed(tensor, sum(key.encode()) + len(key) * 2**32 if key else 0)
        for key, tensor in inputs
    ]
    return torch.from_numpy(sum(salted[1:], salted[0]).view(np.int64))


def _tensors(key: str, value: Any) -> list[tuple[str, Tensor]]:
    """The tensors of an input by name; those of a plain tensor or sequence have no name."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value if value.flags.writeable else value.copy())
    if isinstance(value, Tensor):
        return [(key, value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        named = (_tensors(str(name), part) for name, part in sorted(value.items(), key=_name))
        return list(itertools.chain.from_iterable(named))
    if isinstance(value, tuple | list):
        numbered = (_tensors(f"{key}{i}", part) for i, part in enumerate(value))
        return list(itertools.chain.from_iterable(numbered))
    return []


def _name(item: tuple[Any, Any]) -> str:
    return str(item[0])


def _rows(tensor: Tensor) -> int:
    return int(tensor.shape[0]) if tensor.ndim else 1


def _hashed(tensor: Tensor, salt: int) -> np.ndarray:
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    rows = _rows(values)
    values = values.reshape(rows, -1)
    width = values.shape[1]
    weights = _multipliers(width, salt)
    out = np.zeros(rows, dtype=np.uint64)
    step = max(1, ENTRIES // max(1, width))
    size = min(step, rows), width
    room = np.empty(size, dtype=np.float32), np.empty(size, np.uint64), np.empty(size, np.uint64)
    for start in range(0, rows, step):
        part = values[start : start + step].to("cpu", torch.float32).numpy()
        plain, mixed, high = (array[: len(part)] for array in room)
        np.add(part, np.float32(0), out=plain)  # −0 becomes 0
        if any_nan(torch.from_numpy(plain)):
            plain[np.isnan(plain)] = np.nan
        np.multiply(plain.view(np.uint32), np.uint64(FIRST), out=mixed)
        mixed ^= np.right_shift(mixed, np.uint64(29), out=high)
        np.einsum("ij,j->i", mixed, weights, out=out[start : start + step])
    return out


def _multipliers(width: int, salt: int) -> np.ndarray:
    """Fixed odd numbers, one per entry of a row: SplitMix64 of its place.

    References:
        Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators, OOPSLA.
    """
    z = np.arange(1, width + 1, dtype=np.uint64) + np.uint64(salt % 2**63)
    z *= np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def state_sum(model: nn.Module) -> str:
    """A checksum of every tensor of a model's state, quick rather than safe from forgery.

    Sums over the bits of each tensor, weighted by place: training, pruning or a change of order
    shows in them.
    """
    state = model.state_dict()
    return checksum({key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)})


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """The same of tensors by their names."""
    digest = hashlib.blake2b(digest_size=8)
    sums = _sums(tensors)
    for key, tensor in tensors.items():
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}{sums[key]}".encode())
    return digest.hexdigest()


def _sums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """`_sum` of each; small ones of one type side by side, as each alone takes longer to begin."""
    found: dict[str, int] = {}
    small: dict[torch.dtype, list[str]] = {}
    for key, tensor in tensors.items():
        if _is_small(tensor):
            small.setdefault(tensor.dtype, []).append(key)
        else:
            found[key] = _sum(tensor)
    for keys in small.values():
        together = torch.cat([tensors[key].detach().reshape(-1) for key in keys])
        words = together.view(torch.uint8).numpy().view(np.uint64)
        counts = [tensors[key].numel() * together.element_size() // 8 for key in keys]
        mixed = words ^ (words >> HALF)
        mixed *= np.concatenate([_weights()[:count] for count in counts])
        starts = np.cumsum([0, *counts[:-1]])
        found.update(zip(keys, np.add.reduceat(mixed, starts).tolist(), strict=True))
    return found


def _is_small(tensor: Tensor) -> bool:
    """Whether a tensor is a plain one of few words, and of whole ones."""
    if type(tensor) not in (Tensor, nn.Parameter) or not 0 < tensor.numel() <= SMALL:
        return False
    octets = tensor.numel() * tensor.element_size()
    kind = tensor.layout == torch.strided and tensor.is_cpu and not tensor.is_quantized
    return kind and octets % 8 == 0 and not tensor.is_complex()


def _sum(tensor: Tensor) -> int:
    """Σ wᵢ m(bᵢ) mod 2⁶⁴ over words bᵢ of eight bytes; wᵢ odd, m one to one: one change shows."""
    plain = tensor.detach()
    if plain.is_meta or plain.is_quantized or plain.layout != torch.strided:
        return 0  # none of these is ever pruned
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    flat = plain.contiguous().view(-1).view(torch.uint8)
    weights, found = _weights(), 0
    mixed = np.empty(min(WORDS, len(flat) // 8), dtype=np.uint64)
    for start in range(0, len(flat), 8 * WORDS):
        octets = flat[start : start + 8 * WORDS].cpu().numpy()
        whole = len(octets) // 8
        words, now = octets[: 8 * whole].view(np.uint64), mixed[:whole]
        np.right_shift(words, HALF, out=now)
        now ^= words  # exponents lie high up
        part = int(np.dot(now, weights[:whole]))
        if 8 * whole < len(octets):
            part += int.from_bytes(octets[8 * whole :].tobytes(), "little") * int(weights[whole])
        found = (found * GOLDEN + part) % 2**64
    return found


@lru_cache(maxsize=1)
def _weights() -> np.ndarray:
    """One for each word of a piece, and one more."""
    return _multipliers(WORDS + 1, 0)

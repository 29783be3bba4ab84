"""safetensors files by hand: the same tensors and words give the same bytes, and all is checked.

Eight bytes of the header's length, the header in JSON padded with spaces to a multiple of eight,
and the tensors' bytes one after another, wide types first and by name within a type.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Box", "boxed", "unboxed"]

# By type code: bytes of an entry, in the order in which tensors are laid down.
SIZES = {
    "U64": 8, "I64": 8, "F64": 8, "C64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2,
    "U16": 2, "I16": 2, "F8_E8M0": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
CHECK = "crc32"
BLANK = "00000000"
LONGEST = 1 << 26  # bytes of a header


@dataclass(frozen=True)
class Box:
    """A tensor as bytes, little endian.

    Attributes:
        code: of the type, as safetensors names it.
        shape: of the tensor.
        data: its bytes.
    """

    code: str
    shape: tuple[int, ...]
    data: bytes


def boxed(boxes: Mapping[str, Box], words: Mapping[str, str]) -> bytes:
    """The file. A checksum of all of it, with zeros in its own place, stands among the words."""
    blank = _laid({**words, CHECK: BLANK}, boxes)
    return _laid({**words, CHECK: f"{zlib.crc32(blank):08x}"}, boxes)


def unboxed(data: bytes) -> tuple[dict[str, Box], dict[str, str]]:
    """What `boxed` was given.

    Raises:
        ValueError: the bytes are no such file, or fewer or more than it says; the message begins
            in the middle of a sentence.
    """
    if len(data) < 8:
        raise ValueError("is truncated or no safetensors file")
    size = int.from_bytes(data[:8], "little")
    if size > LONGEST:
        raise ValueError("is no safetensors file")
    if 8 + size > len(data):
        raise ValueError("is truncated or no safetensors file")
    try:
        header = json.loads(data[8 : 8 + size].decode())
    except (ValueError, RecursionError):
        raise ValueError("has no header in JSON, so that it is no safetensors file") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise ValueError("has a foreign header")
    words = header.pop("__metadata__")
    if not all(isinstance(word, str) for word in words.values()):
        raise ValueError("has a foreign header")
    boxes: dict[str, Box] = {}
    end = 0
    for name, entry in header.items():
        code, shape, begin, end = _entry(name, entry, end)
        boxes[name] = Box(code, shape, data[8 + size + begin : 8 + size + end])
    rest = len(data) - 8 - size - end
    if rest:
        said = f"has {rest} bytes too many" if rest > 0 else "is truncated"
        raise ValueError(f"{said}")
    return boxes, words


def sound(data: bytes, boxes: Mapping[str, Box], words: Mapping[str, str]) -> bool:
    """Whether a file is byte for byte what `boxed` writes for what it holds."""
    return boxed(boxes, {name: word for name, word in words.items() if name != CHECK}) == data


def _entry(name: str, entry: Any, begin: int) -> tuple[str, tuple[int, ...], int, int]:
    try:
        code, shape, (first, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = [*shape, first, end]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"has a foreign header at tensor {name!r}") from None
    count = SIZES.get(code, 0) if isinstance(code, str) else 0
    if count == 0 or any(type(n) is not int or not 0 <= n < 1 << 62 for n in whole):
        raise ValueError(f"has a foreign header at tensor {name!r}")
    for length in shape:
        count *= length
    if first != begin or end - begin != count:
        raise ValueError(f"has tensor {name!r} at the wrong place, or of the wrong size")
    return code, tuple(shape), first, end


def _laid(words: Mapping[str, str], boxes: Mapping[str, Box]) -> bytes:
    places = list(SIZES)
    header: dict[str, Any] = {"__metadata__": dict(sorted(words.items()))}
    order = sorted(boxes, key=lambda name: (places.index(boxes[name].code), name))
    end = 0
    for name in order:
        begin, end = end, end + len(boxes[name].data)
        header[name] = {
            "dtype": boxes[name].code,
            "shape": list(boxes[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(boxes[n].data for n in order)])

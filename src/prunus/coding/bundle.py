"""Many small tensors as one, so that each does not cost a line of the header.

Four bytes of the length of the list, the list (zlib: JSON of [name, type, shape]), and the
tensors' bytes one after another.
"""

import json
import math
import zlib
from collections.abc import Mapping

from prunus.coding.box import SIZES, Box

__all__ = ["NAME", "bundled", "unbundled"]

NAME = "|others"
SMALL = 4096  # bytes of a tensor that is bundled, at most
LONGEST = 1 << 26  # bytes of the list


def bundled(boxes: Mapping[str, Box]) -> dict[str, Box]:
    """The same tensors, small ones in one, where there are several."""
    small = sorted(name for name, box in boxes.items() if len(box.data) <= SMALL)
    if len(small) < 2:
        return dict(boxes)
    account = [[name, boxes[name].code, list(boxes[name].shape)] for name in small]
    text = zlib.compress(json.dumps(account, separators=(",", ":")).encode(), 9)
    parts = [len(text).to_bytes(4, "little"), text, *(boxes[name].data for name in small)]
    data = b"".join(parts)
    rest = {name: box for name, box in boxes.items() if name not in small}
    return {**rest, NAME: Box("U8", (len(data),), data)}


def unbundled(box: Box) -> dict[str, Box]:
    """The tensors of a bundle.

    Raises:
        ValueError: anything that `bundled` cannot have written.
    """
    wrong = ValueError("a damaged account of its small tensors")
    size = int.from_bytes(box.data[:4], "little")
    if box.code != "U8" or len(box.data) < 4 + size:
        raise wrong
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(box.data[4 : 4 + size], LONGEST)
        account = json.loads(text.decode())
    except (zlib.error, ValueError, RecursionError):
        raise wrong from None
    if not reader.eof or reader.unused_data or not isinstance(account, list):
        raise wrong
    found: dict[str, Box] = {}
    place = 4 + size
    for entry in account:
        if not isinstance(entry, list) or len(entry) != 3:
            raise wrong
        name, code, shape = entry
        known = isinstance(name, str) and isinstance(code, str) and name not in found
        if not known or code not in SIZES or not isinstance(shape, list):
            raise wrong
        if any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape):
            raise wrong
        end = place + SIZES[code] * math.prod(shape)
        if end > len(box.data):
            raise wrong
        found[name] = Box(code, tuple(shape), box.data[place:end])
        place = end
    if place != len(box.data):
        raise wrong
    return found

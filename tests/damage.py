"""Files that prunus reads, and ways to damage them."""

import copy
import hashlib
import json
import struct

HOSTILE = [
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, -1e308, 1e-320,
    float("nan"), float("inf"), "", "x", "NaN", "../../etc/passwd", "\ud800", "a" * 5000, "\0",
    [], {}, [[]], [-1], [10**5, 10**5], [2**62, 2**62], [0, -1], [None], {"a": 1}, {"": {}}, [1e9],
    "Iterative(rounds=1000000000)", "TopK()", "(" * 3000, "Recipe(" * 60 + ")" * 60,
]  # fmt: skip


def places(tree, here=()):
    """Every place in a tree of lists and objects."""
    yield here
    parts = tree.items() if isinstance(tree, dict) else ()
    for key, part in enumerate(tree) if isinstance(tree, list) else parts:
        yield from places(part, (*here, key))


def damaged_tree(tree, draw):
    """A tree with one place changed, taken away, doubled or made deep."""
    tree = copy.deepcopy(tree)
    *path, last = draw.choice([place for place in places(tree) if place])
    holder = tree
    for key in path:
        holder = holder[key]
    kind = draw.randrange(6)
    if kind == 0 and isinstance(holder, dict):
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(["x", "", "layers.9", str(last) + "."])] = holder.pop(last)
    elif kind == 2:
        deep = []
        for _ in range(draw.choice([3, 40, 2000])):
            deep = [deep]
        holder[last] = deep
    elif kind == 3 and isinstance(holder[last], list | dict) and holder[last]:
        inner = holder[last]
        if isinstance(inner, list):
            inner.extend(inner * draw.choice([1, 3]))
        else:
            inner.update({f"{k}+": v for k, v in inner.items()})
    else:
        holder[last] = draw.choice(HOSTILE)
    return tree


def told(tree):
    """A tree as JSON; its deepest parts are written by hand, since `json` stops at a depth."""
    try:
        return json.dumps(tree)
    except RecursionError:
        return json.dumps({"deep": 0}).replace("0", "[" * 3000 + "]" * 3000)


def damaged_text(text, draw):
    """Bytes with some changed, lost, doubled or put in."""
    data = bytearray(text)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            data = data[:at]
        elif kind == 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 2:
            data[at:at] = draw.randbytes(draw.choice([1, 4, 100]))
        elif kind == 3:
            del data[at : at + draw.choice([1, 8, 64])]
        elif kind == 4:
            data[at:at] = data[at : at + 200]
        elif at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        if not data:
            break
    return bytes(data)


def damaged_tensors(data, draw):
    """A safetensors file with a damaged header or damaged bytes."""
    if draw.random() < 0.4:
        return damaged_text(data, draw)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    kind = draw.randrange(4)
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    if kind == 0:  # a tensor of another shape with as many entries
        shape = header[name]["shape"]
        header[name]["shape"] = draw.choice([[*shape, 1], [1, *shape], shape[::-1], shape[:-1]])
    elif kind == 1:
        header[name]["dtype"] = draw.choice(
            ["F32", "F64", "I64", "U8", "BF16", "BOOL", "F8", "C64"]
        )
    elif kind == 2:
        header[draw.choice(["x", "mask|x", "dense|x", "a|b|c", "|g|gate"])] = header.pop(name)
    else:
        header = damaged_tree(header, draw)
    text = told(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def damaged_folder(folder, account, draw):
    """Damage an account, or a file of tensors whose hash is made to fit; the files to write."""
    facts = json.loads((folder / account).read_text())
    if draw.random() < 0.25:
        return {account: damaged_text((folder / account).read_bytes(), draw)}
    if draw.random() < 0.55:
        return {account: told(damaged_tree(facts, draw)).encode("utf-8", "surrogatepass")}
    part = draw.choice(sorted(facts["files"]))
    name = f"{part}-{facts['files'][part][:12]}.safetensors"
    data = damaged_tensors((folder / name).read_bytes(), draw)
    digest = hashlib.sha256(data).hexdigest()
    facts["files"][part] = digest
    return {
        f"{part}-{digest[:12]}.safetensors": data,
        account: json.dumps(facts).encode(),
    }

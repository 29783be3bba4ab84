"""Files of states: every type and shape to the bit, every changed byte caught, hostile headers."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from prunus.coding import bundle, numbers
from prunus.coding.box import Box, boxed, unboxed
from prunus.coding.masks import CODERS
from prunus.coding.rans import ONE, Encoder, Table
from prunus.coding.state import MARK, Coded, digest_of, pack, unpack

SEED = st.integers(0, 2**32 - 1)


def sparse(shape, seed, density=0.4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(shape, generator=generator) < density
    return torch.where(mask, value, torch.zeros_like(value)), mask


def shared(shape, seed, k=4, density=0.4):
    _, mask = sparse(shape, seed, density)
    book = torch.linspace(-1, 1, k).half()
    codes = np.random.default_rng(seed).integers(0, k, int(mask.sum()))
    weight = torch.zeros(shape)
    weight[mask] = book[torch.from_numpy(codes)].float()
    return weight, Coded(mask=mask, book=book, codes=codes)


def bits_of(value):
    flat = value.contiguous().reshape(-1)
    return flat.view(torch.uint8).tolist() if flat.numel() else []


def small_file(**words):
    weight, how = shared((4, 6), 1)
    raw, mask = sparse((3, 5), 2)
    state = {"a.weight": weight, "a.bias": torch.linspace(-1, 1, 4).half().float(), "b.weight": raw,
             "b.count": torch.tensor(7)}  # fmt: skip
    coded = {"a.weight": how, "b.weight": Coded(mask=mask)}
    packed = pack(state, coded, {"recipe": "Recipe()", **words}, half=frozenset(["a.bias"]))
    return state, packed


@given(
    SEED,
    st.sampled_from(["float64", "float32", "float16", "bfloat16"]),
    st.sampled_from([(5, 7), (1, 1), (3, 2, 3, 3), (0, 4), (4, 0), (9,)]),
    st.floats(0, 1),
)
def test_lossless_states_come_back_to_the_bit(seed, kind, shape, density):
    dtype = getattr(torch, kind)
    value, mask = sparse(shape, seed, density, dtype)
    flat, where = value.reshape(-1), mask.reshape(-1)
    for special in (math.nan, -math.inf, -0.0):  # inside the mask
        if where.any():
            flat[int(where.nonzero()[seed % int(where.sum())])] = special
    state = {"w": value, "flag": torch.tensor([True, False]), "n": torch.tensor(3)}
    found, masks, _ = unpack(pack(state, {"w": Coded(mask=mask)}, {}).data)
    assert found.keys() == state.keys()
    for name, own in state.items():
        assert (found[name].dtype, found[name].shape) == (own.dtype, own.shape)
        assert bits_of(found[name]) == bits_of(own)
    assert torch.equal(masks["w"], mask)


def test_payloads_of_nans_stay():
    value = torch.tensor([[0x7FC01234, 0, -0x80000000]], dtype=torch.int32).view(torch.float32)
    mask = torch.tensor([[True, False, True]])
    found = unpack(pack({"w": value}, {"w": Coded(mask=mask)}, {}).data)[0]["w"]
    assert found.view(torch.int32).tolist() == value.view(torch.int32).tolist()


@given(SEED, st.sampled_from([1, 2, 8, 300, 4096]), st.sampled_from([None, "rows", "huffman"]))
def test_shared_states_come_back(seed, k, coder):
    weight, how = shared((20, 15), seed, k)
    how = Coded(mask=how.mask, book=how.book, codes=how.codes, coder=coder)
    if not 0 < int(how.mask.sum()) < 300:
        return
    packed = pack({"w": weight}, {"w": how}, {})
    found, masks, _ = unpack(packed.data)
    assert torch.equal(found["w"], weight)
    assert torch.equal(masks["w"], how.mask)
    sizes = [size for own in packed.parts.values() for size in own.values()]
    assert sum(sizes) == pytest.approx(len(packed.data))


@settings(max_examples=60)
@given(
    SEED,
    st.sampled_from([(0, 5), (5, 0), (1, 1), (1, 9), (9, 1), (3, 70_000), (4, 3, 2, 2), (50, 60)]),
    st.integers(1, 4096),
    st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    st.sampled_from([None, "huffman", *CODERS]),
)
def test_any_shape_with_any_number_of_values_comes_back(seed, shape, k, density, coder):
    weight, how = shared(shape, seed, k, density)
    kept, lines = int(how.mask.sum()), (shape[0], math.prod(shape[1:]))
    partly = 0 < kept < weight.numel()
    if coder in CODERS and not (partly and CODERS[coder].fits(lines)):
        coder = None
    if kept == 0:
        how = Coded(mask=how.mask)
    else:
        how = Coded(mask=how.mask, book=how.book, codes=how.codes, coder=coder)
    packed = pack({"w": weight}, {"w": how}, {})
    found, masks, _ = unpack(packed.data)
    assert bits_of(found["w"]) == bits_of(weight)
    assert torch.equal(masks["w"], how.mask)
    assert packed.layers["w"]["kept"] == kept
    if coder in CODERS:
        assert packed.layers["w"]["coder"] == coder


def test_other_tools_can_list_the_file():
    state, packed = small_file()
    listed = load(packed.data)
    assert set(listed) == {"a.weight|words", "b.weight|words", "b.weight|values", bundle.NAME}
    assert torch.equal(listed["b.weight|values"], state["b.weight"][state["b.weight"] != 0])


def test_equal_states_give_equal_bytes_in_any_order():
    state, packed = small_file()
    weight, how = shared((4, 6), 1)
    raw, mask = sparse((3, 5), 2)
    other = {"b.count": state["b.count"], "b.weight": raw, "a.bias": state["a.bias"],
             "a.weight": weight}  # fmt: skip
    coded = {"b.weight": Coded(mask=mask), "a.weight": how}
    again = pack(other, coded, {"recipe": "Recipe()"}, half=frozenset(["a.bias"]))
    assert digest_of(other) == digest_of(state)
    assert len(again.data) == len(packed.data)


def test_every_changed_byte_is_caught():
    _, packed = small_file()
    rng = np.random.default_rng(0)
    for place in range(len(packed.data)):
        broken = bytearray(packed.data)
        broken[place] ^= int(rng.integers(1, 256))
        with pytest.raises(ValueError, match=r"^The file "):
            unpack(bytes(broken), max_bytes=1 << 20)


@pytest.mark.slow
def test_every_change_of_every_byte_is_caught():
    """All 255 of them, of a file with both ways to store a layer."""
    _, packed = small_file()
    broken = bytearray(packed.data)
    for place, own in enumerate(packed.data):
        for other in range(256):
            if other == own:
                continue
            broken[place] = other
            with pytest.raises(ValueError, match=r"^The file "):
                unpack(bytes(broken), max_bytes=1 << 20)
        broken[place] = own
    assert bytes(broken) == packed.data


def test_every_truncation_is_caught():
    _, packed = small_file()
    for size in range(0, len(packed.data), 5):
        with pytest.raises(ValueError, match=r"^The file (is truncated|has|lacks|was|is no)"):
            unpack(packed.data[:size])
    with pytest.raises(ValueError, match="has 1 bytes too many"):
        unpack(packed.data + b"\0")


def forged(change=None, words=None, boxes=None):
    """A file with a sound checksum whose header or tensors say something else."""
    _, packed = small_file()
    own, head = unboxed(packed.data)
    head.pop("crc32")
    layers = json.loads(head["layers"])
    if change is not None:
        change(layers)
    head["layers"] = json.dumps(layers, separators=(",", ":"))
    return boxed({**own, **(boxes or {})}, {**head, **(words or {})})


def streamed(write, more=0):
    """The words of layer a.weight, which keeps 5 of 4 × 6 entries, its stream written so."""
    stream = Encoder()
    write(stream)
    states, words = stream.finish(1)
    book = torch.linspace(-1, 1, 4).half().numpy().tobytes()
    data = book + states.astype("<u4").tobytes() + words.astype("<u2").tobytes() + b"\1\0" * more
    facts = {"kept": 5, "lanes": 1, "coder": "rows"}
    return {
        "change": lambda layers: layers[A].update(facts),
        "boxes": {f"{A}|words": Box("U16", (len(data) // 2,), data)},
    }


def five(stream, counts=(2, 1, 1, 1), table=(ONE - 3, 1, 1, 1), codes=(0, 0, 0, 0, 0)):
    """A mask of five entries by "rows", of which other `counts` are told, and their codes."""
    mask = np.zeros((4, 6), dtype=bool)
    mask[[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]] = True
    numbers.write_counts(stream, np.array(counts), 6)
    whole = Encoder()
    CODERS["rows"].write(whole, mask)
    stream._runs += whole._runs[-len(mask) :]
    numbers._write(stream, np.array(table), Table.uniform(numbers.CLASSES))
    stream.symbols(np.array(codes), Table(np.array([ONE - 3, 1, 1, 1])))


A, B = "a.weight", "b.weight"
FORGED = {
    "count beyond": (streamed(lambda s: five(s, (7, 1, 1, 1))), f"layer {A}: a count of 7 .* 6"),
    "counts": (streamed(lambda s: five(s, (1, 1, 1, 1))), f"layer {A}: .* add up to 4, not 5"),
    "other counts": (
        streamed(lambda s: five(s, (1, 2, 1, 1))), f"layer {A}: a line keeps 3 entries, not 1",
    ),
    "table": (
        streamed(lambda s: five(s, table=(9, 1, 1, 1))), f"layer {A}: .* add up to 12, not {ONE}",
    ),
    "left over": (streamed(five, 1), f"layer {A}: 1 words of the stream are left over"),
    "state": (
        streamed(lambda s: (five(s), s.symbols(np.array([1]), Table.uniform(1)))),
        f"layer {A}: a state of the stream is not at 2¹⁶ at its end",
    ),
    "newer": (dict(words={"version": "2", "prunus": "9.9"}), "prunus 9.9 .* Update prunus"),
    "older": (dict(words={"version": "0"}), "Compress the network again"),
    "foreign": (dict(words={"format": "other"}), "no compressed network"),
    "no layers": (dict(words={"layers": "[]"}), "damaged account of its layers"),
    "no json": (dict(words={"layers": "{"}), "damaged account of its layers"),
    "k = 0": (dict(change=lambda f: f[A].update(k=0)), f"damaged account of layer {A}"),
    "k": (dict(change=lambda f: f[A].update(k=5)), f"layer {A}"),
    "huge k": (dict(change=lambda f: f[A].update(k=4097)), f"layer {A}"),
    "kept": (dict(change=lambda f: f[A].update(kept=1)), f"layer {A}"),
    "kept beyond": (dict(change=lambda f: f[A].update(kept=25)), "keeps 25 of 24"),
    "negative": (dict(change=lambda f: f[A].update(kept=-1)), f"layer {A}"),
    "float": (dict(change=lambda f: f[A].update(kept=1.5)), f"layer {A}"),
    "true": (dict(change=lambda f: f[A].update(lanes=True)), f"layer {A}"),
    "lanes": (dict(change=lambda f: f[A].update(lanes=4097)), "4097 lanes"),
    "coder": (dict(change=lambda f: f[A].update(coder="new")), "coder 'new' is none of"),
    "huffman": (dict(change=lambda f: f[A].update(coder="huffman")), f"layer {A}"),
    "shape": (dict(change=lambda f: f[A].update(shape=[6, 4])), f"layer {A}|another hash"),
    "huge": (dict(change=lambda f: f[A].update(shape=[1 << 31, 1 << 30])), "max_bytes"),
    "no axes": (dict(change=lambda f: f[A].update(shape=[])), f"layer {A}"),
    "lacking": (dict(change=lambda f: f[A].pop("shape")), f"layer {A}"),
    "more": (dict(change=lambda f: f[A].update(extra=1)), f"layer {A}"),
    "type": (dict(change=lambda f: f[B].update(dtype="float8")), f"layer {B}"),
    "other type": (dict(change=lambda f: f[B].update(dtype="float16")), "of float16"),
    "missing": (dict(change=lambda f: f.update(c=f[A])), "lacks the tensor"),
    "unknown": (dict(change=lambda f: f.pop(B)), "belongs to no layer"),
    "hash": (dict(words={"sha256": "0" * 64}), "another hash"),
    "words": (dict(boxes={f"{A}|words": Box("U16", (3,), b"\0" * 6)}), f"layer {A}"),
    "bundle": (dict(boxes={bundle.NAME: Box("U8", (6,), b"\2\0\0\0xx")}), "small tensors"),
    "half": (dict(boxes={"x|half": Box("F32", (1,), b"\0" * 4)}), "belongs to no layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(FORGED))
def test_forged_files_are_refused(case):
    how, match = FORGED[case]
    with pytest.raises(ValueError, match=match) as caught:
        unpack(forged(**how), source="here.st")
    said = str(caught.value)
    assert said.startswith("here.st ")
    assert "\n" not in said
    assert said.endswith((  # what to do
        "Copy it again.", "Compress again.", "Compress the network again.", "Update prunus.",
        "Give a file that `compress` wrote.", "Raise `max_bytes` if you trust it.",
    ))  # fmt: skip


def test_the_unforged_file_is_read():
    assert set(unpack(forged())[0]) == {A, B, "a.bias", "b.count"}
    state, _ = small_file()
    state[A] = torch.zeros(4, 6)
    state[A][[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]] = -1.0
    found, _, _ = unpack(forged(words={"sha256": digest_of(state)}, **streamed(five)))
    assert torch.equal(found[A], state[A])  # so that each of the cases is wrong by one thing


@given(SEED, st.integers(0, 400))
def test_noise_is_refused(seed, size):
    noise = np.random.default_rng(seed).bytes(size)
    for data in (
        noise,
        len(noise).to_bytes(8, "little") + noise,
        b"\2" + b"\0" * 7 + b"{}" + noise,
    ):
        with pytest.raises(ValueError, match=r"^The file "):
            unpack(data)


def test_sizes_are_checked_before_anything_is_decoded():
    state, packed = small_file()
    size = sum(value.numel() * value.element_size() for value in state.values())
    assert unpack(packed.data, max_bytes=size)[0].keys() == state.keys()
    with pytest.raises(ValueError, match=f"more than max_bytes={size - 20}") as told:
        unpack(packed.data, max_bytes=size - 20)
    least = int(re.search(r"decodes to (\d+) bytes", str(told.value))[1])
    assert unpack(packed.data, max_bytes=least)[0].keys() == state.keys()
    with pytest.raises(ValueError, match=f"more than max_bytes={least - 1}"):
        unpack(packed.data, max_bytes=least - 1)


def test_wide_types_come_first_so_that_every_tensor_is_aligned():
    """Then by name, whatever order the state has: readers map the bytes as they lie."""
    kinds = {"a": ("I8", 1), "b": ("F64", 8), "c": ("F16", 2), "d": ("F32", 4)}
    boxes = {
        f"{name}{n}": Box(code, (3,), bytes(3 * width))
        for n in "10"
        for name, (code, width) in kinds.items()
    }
    data = boxed(boxes, {})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert [name for name in header if name in boxes] == [
        *("b0", "b1", "d0", "d1", "c0", "c1", "a0", "a1")
    ]
    for name in boxes:
        assert (8 + size + header[name]["data_offsets"][0]) % kinds[name[0]][1] == 0
    assert boxed(dict(reversed(boxes.items())), {}) == data


def test_names_that_mark_parts_are_refused():
    with pytest.raises(ValueError, match=r"Tensor 'a\|b' has a `\|`"):
        pack({"a|b": torch.zeros(1)}, {}, {})
    with pytest.raises(ValueError, match="safetensors cannot store"):
        pack({"c": torch.zeros(1, dtype=torch.complex128)}, {}, {})
    assert MARK == "|"


def test_a_digest_follows_names_types_shapes_and_every_bit():
    state = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([2])}
    others = [
        {**state, "a": torch.tensor([[1.0, -0.0]])},
        {**state, "a": state["a"].T},
        {**state, "a": state["a"].view(torch.int32)},
        {"c": state["a"], "b": state["b"]},
        {"a": state["a"]},
    ]
    digests = [digest_of(one) for one in (state, *others)]
    assert len(set(digests)) == len(digests)
    assert digest_of(dict(reversed(state.items()))) == digests[0]
    assert digest_of({name: value.clone() for name, value in state.items()}) == digests[0]

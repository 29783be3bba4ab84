"""Masks of every kind take padding out of the stream they belong to, and of no other."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.calibration import calibrate
from prunus.calibration.layout import layout_of
from prunus.calibration.padding import Layout, padding_of

B, S, D = 4, 6, 8
AS_GIVEN = Layout(turned={"any": False})
REAL = torch.tensor([6, 4, 3, 6])[:, None] > torch.arange(S)  # Bool[B, S]


def kinds():
    keys = REAL[:, None, None, :]
    causal = torch.ones(S, S).tril().bool()
    queries = keys & causal
    floor = torch.finfo(torch.float32).min
    return {
        "whole numbers": REAL.long(),
        "booleans": REAL,
        "real 0 and 1": REAL.float(),
        "added": torch.zeros(B, S).masked_fill(~REAL, -10000.0),
        "keys": keys,
        "keys added": torch.zeros(B, 1, 1, S).masked_fill(~keys, floor),
        "queries": queries,
        "queries added": torch.zeros(B, 1, S, S).masked_fill(~queries, -torch.inf),
        "no heads": queries[:, 0],
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_form_of_a_mask_says_the_same(kind):
    x = torch.randn(B, S, D)
    found = padding_of({"x": x, "attention_mask": kinds()[kind]}, AS_GIVEN)
    torch.testing.assert_close(found.real("any", lambda: x), x[REAL])
    torch.testing.assert_close(found.real("any", lambda: x.reshape(-1, D)), x[REAL])
    assert torch.equal(found.real("any", lambda: x[:, 0]), x[:, 0])  # one vector per sequence


@pytest.mark.parametrize("marks", [torch.bool, torch.float32])
def test_key_padding_masks_mean_the_opposite(marks):
    x = torch.randn(B, S, D)
    given = ~REAL if marks is torch.bool else torch.zeros(B, S).masked_fill(~REAL, -torch.inf)
    found = padding_of({"src": x, "src_key_padding_mask": given}, AS_GIVEN)
    torch.testing.assert_close(found.real("any", lambda: x), x[REAL])
    first = x.transpose(0, 1)  # positions before samples
    torch.testing.assert_close(found.real("any", lambda: first), first[REAL.T])


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(B, S),
        torch.ones(B, 1, S, S).tril(),
        torch.zeros(B, 1, S, S),
        torch.ones(S, S).tril(),  # the same for all samples
        torch.zeros(2 * B, S, S),
    ],
)
def test_a_mask_that_hides_nothing_is_none(mask):
    assert padding_of({"x": torch.randn(B, S, D), "attention_mask": mask}) is None


def test_bad_masks_are_named():
    x = torch.randn(B, S, D)
    message = (
        "`attention_mask` says that every position is padding, which 0 marks. Turn the mask "
        "round, or leave it out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        padding_of({"x": x, "attention_mask": torch.zeros(B, S)})
    message = (
        "`attention_mask` must be (batch, positions), got shape (4,). Leave other masks to the "
        "model's own arguments."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        padding_of({"x": x, "attention_mask": torch.ones(B)})


class Translator(nn.Module):
    """An encoder, and a decoder that reads it: keys and values come from the source."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, D)
        self.encode = nn.Linear(D, D)
        self.query, self.key, self.value = (nn.Linear(D, D) for _ in range(3))
        self.out = nn.Linear(D, 20)

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask=None):
        source = F.gelu(self.encode(self.embed(input_ids)))
        query = self.query(self.embed(decoder_input_ids))
        scores = query @ self.key(source).transpose(1, 2) / D**0.5
        scores = scores.masked_fill(attention_mask[:, None] == 0, -torch.inf)
        return self.out(scores.softmax(-1) @ self.value(source))


def batch_of(length, masked):
    torch.manual_seed(1)
    batch = {
        "input_ids": torch.randint(0, 20, (B, S)),
        "attention_mask": REAL.long(),
        "decoder_input_ids": torch.randint(0, 20, (B, length)),
    }
    if masked:
        batch["decoder_attention_mask"] = (torch.arange(length) < length - 1).expand(B, -1).long()
    return batch


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [S, 4, 9])
def test_each_stream_loses_its_own_padding(length, masked):
    torch.manual_seed(0)
    model, batch = Translator(), batch_of(length, masked)
    seen = {}
    hooks = [
        m.register_forward_pre_hook(lambda m, a, n=n: seen.update({n: a[0].detach().double()}))
        for n, m in model.named_children()
        if isinstance(m, nn.Linear)
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    found = calibrate(model, batch)
    target = torch.ones(B, length).bool()
    if masked:
        target[:, -1] = False
    for name, layer in found.items():
        real = REAL if name in ("encode", "key", "value") else target
        x = seen[name][real]
        assert layer.samples == len(x), name
        torch.testing.assert_close(layer.gram, x.T @ x / len(x), rtol=1e-5, atol=1e-7)


def test_streams_are_told_apart_by_running():
    model, batch = Translator(), batch_of(S, masked=False)
    assert layout_of(model, batch).streams == {
        "encode": 0, "key": 0, "value": 0, "query": 1, "out": 1,
    }  # fmt: skip
    assert layout_of(model, {"input_ids": batch["input_ids"]}).streams == {}
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_layer_of_both_streams_is_refused_where_they_are_equally_long():
    class Shared(Translator):
        def forward(self, input_ids, attention_mask, decoder_input_ids):
            source = self.encode(self.embed(input_ids))
            return self.out(
                source.mean(1, keepdim=True) + self.encode(self.embed(decoder_input_ids))
            )

    model = Shared()
    message = (
        "Layer 'encode' may read either of two equally long streams of the batch, and their "
        "padding differs. Exclude the layer, or give streams of different lengths."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        calibrate(model, batch_of(S, masked=False), layers="encode")
    found = calibrate(model, batch_of(4, masked=False), layers="encode")
    assert found["encode"].samples == int(REAL.sum()) + 4 * B


def test_torchs_transformer_with_padding_on_both_sides():
    torch.manual_seed(0)
    model = nn.Transformer(D, 2, 1, 1, 12, batch_first=True).eval()
    batch = {
        "src": torch.randn(B, S, D),
        "tgt": torch.randn(B, S, D),
        "tgt_mask": torch.triu(torch.full((S, S), -torch.inf), 1),
        "src_key_padding_mask": ~REAL,
        "memory_key_padding_mask": ~REAL,
    }
    found = calibrate(model, batch, layers="*")
    real, every = int(REAL.sum()), B * S
    counts = {name: layer.samples for name, layer in found.items()}
    assert counts == {
        "encoder.layers.0.self_attn.in_proj_weight": real,
        "encoder.layers.0.self_attn.out_proj": real,
        "encoder.layers.0.linear1": real,
        "encoder.layers.0.linear2": real,
        "decoder.layers.0.self_attn.in_proj_weight": every,
        "decoder.layers.0.self_attn.out_proj": every,
        "decoder.layers.0.multihead_attn.out_proj": every,
        "decoder.layers.0.linear1": every,
        "decoder.layers.0.linear2": every,
    }
    assert list(found.unseen) == ["decoder.layers.0.multihead_attn.in_proj_weight"]


def test_inputs_without_padding_pass():
    """A model that drops padding itself, as with packed sequences."""
    x = torch.randn(B, S, D)
    found = padding_of({"x": x, "attention_mask": REAL})
    rows = x[REAL]
    assert torch.equal(found.real("any", lambda: rows), rows)


class TwoTowers(nn.Module):
    """A text with its mask and an image without, each a sequence of its own."""

    def __init__(self):
        super().__init__()
        self.embed, self.patch = nn.Embedding(20, D), nn.Conv2d(3, D, 2, 2)
        self.text, self.image = nn.Linear(D, 5), nn.Linear(D, 5)
        self.head, self.both = nn.Linear(10, 2), nn.Linear(5, 2)
        self.mixes = False

    def forward(self, ids, image, attention_mask):
        seen = attention_mask[..., None].float()
        text = self.text(self.embed(ids)).relu()
        image = self.image(self.patch(image).flatten(2).transpose(1, 2)).relu()
        if self.mixes:
            return self.both(torch.cat([text, image], 1))
        text = (text * seen).sum(1) / seen.sum(1)
        return self.head(torch.cat([text, image.mean(1)], 1))


@pytest.mark.parametrize("length", [S, 4])  # 4: as many positions as the image has patches
def test_a_mask_says_nothing_of_an_image_beside_the_text(length):
    torch.manual_seed(0)
    model = TwoTowers()
    real = (REAL[:, :length] if length == S else REAL[:, 2:]).long()
    ids, image = torch.randint(20, (B, length)), torch.randn(B, 3, 4, 4)
    found = calibrate(model, {"ids": ids, "image": image, "attention_mask": real})
    patches = model.patch(image).flatten(2).transpose(1, 2).reshape(-1, D).double()
    text = model.embed(ids)[real.bool()].double()
    assert [found[n].samples for n in ("text", "image", "head")] == [len(text), 4 * B, B]
    torch.testing.assert_close(found["image"].gram, patches.T @ patches / len(patches))
    torch.testing.assert_close(found["text"].gram, text.T @ text / len(text))
    assert found["patch"].samples == 4 * B  # a convolution of what is not masked
    model.mixes = True
    with pytest.raises(ValueError, match=r"^Layer 'both' sees inputs of shape .*attention_mask"):
        calibrate(model, {"ids": ids, "image": image, "attention_mask": real})


class Rows(nn.Module):
    """Attention with its own order of axes around a layer, and flat rows for another."""

    def __init__(self, inside, outside="first"):
        super().__init__()
        self.inside, self.outside = inside, outside
        self.read = nn.Linear(D, D)
        self.attend = nn.MultiheadAttention(D, 2, batch_first=True)
        self.flat = nn.Linear(D, 3)

    def forward(self, src, src_key_padding_mask):
        x = src if self.outside == self.inside else src.transpose(0, 1)
        x = self.read(x).relu()
        y = x if self.inside == "first" else x.transpose(0, 1)
        y = self.attend(y, y, y, src_key_padding_mask)[0]
        y = y if self.inside == "first" else y.transpose(0, 1)
        flat = self.flat(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return flat if self.outside == self.inside else flat.transpose(0, 1)


def square(size):
    """A mask as wide as it is long, and not its own mirror image."""
    return torch.arange(size)[None] < torch.tensor([size, 2, size - 1, 1, 3, size])[:size, None]


@pytest.mark.parametrize("samples", [6, 4])
@pytest.mark.parametrize("outside", ["first", "last"])
@pytest.mark.parametrize("inside", ["first", "last"])
def test_rows_are_masked_in_the_order_in_which_they_lie(inside, outside, samples):
    """Samples or positions first, at the model's door and inside, three-dimensional and flat."""
    torch.manual_seed(0)
    model, real = Rows(inside, outside), square(6)[:samples]
    x = torch.randn(samples, 6, D)
    src = x if outside == "first" else x.transpose(0, 1).contiguous()
    seen = {}
    for name in ("read", "flat"):
        getattr(model, name).register_forward_pre_hook(
            lambda m, a, name=name: seen.update({name: a[0].detach().double()})
        )
    batch = {"src": src, "src_key_padding_mask": ~real}
    model.eval()(**batch)
    found = calibrate(model, batch, layers=["read", "flat"], statistics=("gram", "slope"))
    mine = real if inside == "first" else real.T
    for name, rows in (("read", seen["read"][mine]), ("flat", seen["flat"][mine.flatten()])):
        assert found[name].samples == len(rows) == int(real.sum())
        torch.testing.assert_close(found[name].gram, rows.T @ rows / len(rows), rtol=1e-5, atol=0)


@pytest.mark.parametrize("outside", ["first", "last"])
def test_the_mask_of_outputs_lies_as_they_do(outside):
    torch.manual_seed(0)
    model, real = Rows("first", outside), square(6)
    batch = {"src": torch.randn(6, 6, D), "src_key_padding_mask": ~real}
    found = padding_of(batch, layout_of(model, batch)).of_output(model(**batch))
    assert torch.equal(found, real if outside == "first" else real.T)


@pytest.mark.parametrize("longer", [False, True])
def test_a_time_major_decoder_has_no_padding_of_the_encoder(longer):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 12)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    model = nn.Transformer(D, 2, 1, 1, 12, custom_encoder=encoder).eval()
    real, length = square(6), 7 if longer else 6
    batch = {
        "src": torch.randn(6, 6, D),
        "tgt": torch.randn(length, 6, D),
        "src_key_padding_mask": ~real,
        "memory_key_padding_mask": ~real,
    }
    found = calibrate(model, batch)
    counts = {name: layer.samples for name, layer in found.items()}
    assert counts == {
        "encoder.layers.0.linear1": int(real.sum()),
        "encoder.layers.0.linear2": int(real.sum()),
        "decoder.layers.0.linear1": 6 * length,
        "decoder.layers.0.linear2": 6 * length,
    }


def test_square_batches_of_a_model_of_one_size_are_refused():
    """Nothing shows whether samples or positions come first."""

    class Fixed(Rows):
        def forward(self, src, src_key_padding_mask):
            return super().forward(src.reshape(6, 6, D), src_key_padding_mask)

    batch = {"src": torch.randn(6, 6, D), "src_key_padding_mask": ~square(6)}
    message = "shape (6, 6) in a padded batch of shape (6, 6), and the model does not run on fewer"
    with pytest.raises(ValueError, match=re.escape(message)):
        calibrate(Fixed("first"), batch, layers="read")
    mirrored = square(6) & square(6).T
    batch["src_key_padding_mask"] = ~mirrored
    assert calibrate(Fixed("first"), batch, layers="read")["read"].samples == int(mirrored.sum())


class Relative(nn.Module):
    """Attention to positions: a table of distances passes a layer of its own."""

    def __init__(self):
        super().__init__()
        self.q, self.table = nn.Linear(D, D), nn.Parameter(torch.randn(2 * S, D))
        self.r, self.o = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x, attention_mask):
        keys = F.relu(self.r(self.table[None]))[0, : 2 * x.shape[1]]
        scores = (self.q(x) @ keys.T).masked_fill(attention_mask[..., None] == 0, 0.0)
        return self.o(scores @ keys)


def test_a_table_that_no_sample_makes_has_no_padding():
    """Its second moment is that of its rows, with a mask as without; other layers lose theirs."""
    torch.manual_seed(0)
    model, x = Relative().eval(), torch.randn(B, S, D)
    batch = {"x": x, "attention_mask": REAL.long()}
    assert layout_of(model, batch).tables == {"r"}
    found = calibrate(model, [batch])
    table = model.table.detach().double()
    torch.testing.assert_close(found["r"].gram, table.T @ table / len(table))
    rows = x[REAL].double()
    torch.testing.assert_close(found["q"].gram, rows.T @ rows / len(rows))


@pytest.mark.parametrize("kind", ["Deberta", "DebertaV2"])
def test_relative_positions_of_padded_text(kind):
    """What DeBERTa's relative positions pass is pruned with the statistics of the table."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, relative_attention=True, pos_att_type=["c2p", "p2c"],
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config).eval()
    ids = torch.randint(1, 50, (B, S))
    pruned = prunus.prune(
        model, "wanda+ls", 0.5, data={"input_ids": ids, "attention_mask": REAL.long()}
    )
    tables = {name for name in pruned.layers if "pos_" in name}
    assert len(tables) == 2
    assert all(pruned.layers[name].error is not None for name in tables)

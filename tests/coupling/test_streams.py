"""Streams that start at tables: embeddings, heads tied to them, positions, tokens of their own."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from coupling_checks import few_of, moved
from prunus import Recipe
from prunus.coupling import couple
from prunus.granularity import Node
from prunus.surgery.norms import is_rms

IDS = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0))


class RMS(nn.Module):
    def __init__(self, wide, offset=0.0):
        super().__init__()
        self.weight, self.eps, self.offset = nn.Parameter(torch.rand(wide) + 0.5), 1e-2, offset

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class GemmaRMSNorm(RMS):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class Text(nn.Module):
    """A residual stream over an embedding, with positions in several forms and a tied head."""

    def __init__(self, norm=RMS, positions="table", tied=True, wide=12):
        super().__init__()
        self.tokens, self.norm = nn.Embedding(20, wide), norm(wide)
        self.up, self.down = nn.Linear(wide, 10), nn.Linear(10, wide)
        self.last, self.head = norm(wide), nn.Linear(wide, 20, bias=False)
        self.positions = positions
        self.place = nn.Embedding(6, wide)
        self.shift, self.kind = nn.Parameter(torch.randn(1, 6, wide)), nn.Parameter(
            torch.randn(1, 1, wide)
        )  # fmt: skip
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids)
        if self.positions == "table":
            x = x + self.place(torch.arange(ids.shape[1]))
        elif self.positions == "sum":
            x = x + (self.shift + self.kind)[:, : ids.shape[1]]
        elif self.positions == "token":
            x = torch.cat([self.kind.expand(len(ids), -1, -1), x[:, 1:]], 1) + self.shift[
                :, : ids.shape[1]
            ]  # fmt: skip
        x = x + self.down(F.relu(self.up(self.norm(x))))
        return self.head(self.last(x))


def text(**options):
    torch.manual_seed(1)
    return Text(**options).double().eval()


class Plain(nn.Identity):
    def __init__(self, wide):
        super().__init__()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["none", "table", "sum", "token"])
def test_a_stream_is_one_group(positions, tied):
    model = text(norm=Plain, positions=positions, tied=tied)
    groups = {g.name: g for g in couple(model, IDS).groups}
    stream = groups["down"]
    assert (stream.size, stream.exact, stream.written) == (12, True, False)
    known = {"none": (), "table": ("place",)}.get(positions, ())
    assert set(stream.embeddings) == {"tokens", *known}
    tables = {s.parameter: len(s.index) for s in stream.slots if s.role == "out"}
    expected = {"sum": {"shift", "kind"}, "token": {"shift", "kind"}}.get(positions, set())
    assert expected <= tables.keys()
    for group in groups.values():
        for members in few_of(group):
            assert moved(model, members, IDS) <= 1e-12
    if not tied:  # negative control: one reader is left out (a tied head reads its own zeros)
        lost = [m for m in stream.classes[0] if m.parameter != "head.weight"]
        assert moved(model, lost, IDS) > 1e-6


@pytest.mark.parametrize("norm", [nn.RMSNorm, RMS, GemmaRMSNorm])
@pytest.mark.parametrize("positions", ["table", "sum"])
def test_width_of_a_stream_is_cut_exactly(norm, positions):
    """Norms are folded: γ √(d/d′), ε d/d′; the tie is one tensor still."""
    model = text(norm=norm, positions=positions)
    whole = prunus.prune(model, Recipe(granularity=Node()), 0.5, data=IDS)
    assert "pruned only where `layers` names it" in whole.not_pruned["down"]
    pruned = prunus.prune(model, Recipe(granularity=Node()), 0.5, data=IDS, layers="*")
    small = pruned.compact(IDS)
    assert small.tokens.weight is small.head.weight
    assert small.tokens.embedding_dim == small.head.in_features == pruned.plan.kept["down"] < 12
    for ids in (IDS, IDS[:1, :4]):
        torch.testing.assert_close(small(ids), pruned.model(ids), rtol=1e-9, atol=1e-10)
    assert pruned.cost_after.parameters == sum(p.numel() for p in small.parameters())


@torch.no_grad()
def test_a_fold_that_is_wrong_shows():
    """Negative controls: the wrong sign, and an epsilon as it was."""
    model = text(norm=RMS)
    pruned = prunus.prune(model, Recipe(granularity=Node()), 0.5, data=IDS, layers="*")
    small, ratio = pruned.compact(IDS), 12 / pruned.plan.kept["down"]
    expected = pruned.model(IDS)
    for change in ("sign", "epsilon"):
        wrong = pruned.compact(IDS)
        with torch.no_grad():
            if change == "sign":
                wrong.norm.weight.div_(ratio)
            else:
                wrong.norm.eps = wrong.last.eps = 1e-2
        assert float((wrong(IDS) - expected).abs().max()) > 1e-4, change
    torch.testing.assert_close(small(IDS), expected, rtol=1e-9, atol=1e-10)


def test_norms_by_hand_are_known_by_what_they_compute():
    class Mean(RMS):
        def forward(self, x):
            return x / (x.abs().mean(-1, keepdim=True) + self.eps) * self.weight

    class Sizes(RMS):
        def forward(self, x):
            return super().forward(x.abs())

    class Outside(RMS):
        def forward(self, x):
            return x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps) * self.weight

    assert is_rms(RMS(5))
    assert is_rms(GemmaRMSNorm(5))
    for other in (Mean, Sizes, Outside):
        assert not is_rms(other(5))
    assert not is_rms(nn.LayerNorm(5))


def test_tables_alone_and_sums_of_rows():
    class Bag(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.table, self.out = kind(20, 8), nn.Linear(8, 3)

        def forward(self, ids):
            x = self.table(ids)
            return self.out(x if x.ndim == 2 else x.mean(1))

    for kind in (nn.Embedding, nn.EmbeddingBag):
        model = Bag(kind).double().eval()
        (group,) = couple(model, IDS).groups
        assert (group.name, group.producers, group.embeddings) == ("table", (), ("table",))
        pruned = prunus.prune(model, "importance-node", 0.5, data=IDS, layers="*")
        small = pruned.compact(IDS)
        assert (small.table.embedding_dim, small.out.in_features) == (4, 4)
        torch.testing.assert_close(small(IDS), pruned.model(IDS))
        named = prunus.prune(model, "importance-node", 0.5, data=IDS, layers=["table", "out"])
        assert named.plan.kept == pruned.plan.kept


def test_a_table_that_is_used_otherwise_stays():
    class Twice(Text):
        def forward(self, ids):
            return super().forward(ids) + self.tokens.weight.sum(1)

    class Exponent(Text):
        def forward(self, ids):
            return self.head(F.linear(self.tokens(ids), self.down.weight.T.exp()[:, :12].T[:12]))

    for model in (Twice(norm=Plain), Exponent(norm=Plain)):
        model = model.double().eval()
        for group in couple(model, IDS).groups:
            for members in few_of(group):
                assert moved(model, members, IDS) <= 1e-12, group.name


class Biased(nn.Module):
    """Attention with a learned bias for each head, looked up by distance or by a table."""

    def __init__(self, form, fused):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.form, self.fused = form, fused
        self.table = nn.Embedding(11, 4)
        self.bias = nn.Parameter(torch.randn(11, 4))

    def forward(self, x):
        q, k, v = (p(x).unflatten(2, (-1, 2)).transpose(1, 2) for p in (self.q, self.k, self.v))
        n = x.shape[1]
        far = torch.arange(n)[:, None] - torch.arange(n) + 5
        if self.form == "embedding":
            bias = self.table(far).permute(2, 0, 1)[None]
        else:
            bias = self.bias[far.flatten()].view(n, n, -1).permute(2, 0, 1)[None]
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.contiguous())
        else:
            out = (q @ k.transpose(2, 3) + bias).softmax(-1) @ v
        return self.o(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("form", ["embedding", "parameter"])
def test_relative_biases_go_with_their_heads(form, fused):
    torch.manual_seed(0)
    model, x = Biased(form, fused).double().eval(), torch.randn(2, 6, 8, dtype=torch.float64)
    (group,) = (g for g in couple(model, x).groups if g.heads)
    name = "table.weight" if form == "embedding" else "bias"
    assert [(s.parameter, s.axis) for s in group.slots if s.parameter == name] == [(name, 1)]
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    small = pruned.compact()
    assert (small.table.weight if form == "embedding" else small.bias).shape == (11, 2)
    for other in (x, x[:, :3]):
        torch.testing.assert_close(small(other), pruned.model(other))


PUT = {
    "index_add": lambda x: torch.zeros_like(x).index_add(1, torch.tensor([0, 1, 1, 3, 2, 2]), x),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(
        1, torch.tensor([0, 1, 1, 3, 2, 2])[None, :, None].expand_as(x), x
    ),
    "index_put": lambda x: torch.index_put(x, (torch.tensor([0, 1]),), x[:1, :1].mean((0, 1))),
    "where": lambda x: torch.where(x > 0.3, x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("form", PUT)
def test_values_put_to_positions(form):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(PUT[form](self.a(x)))

    model, x = Net().double().eval(), torch.randn(4, 6, 5, dtype=torch.float64)
    (group,) = couple(model, x).groups
    assert (group.size, group.written) == (8, False)
    for members in group.classes:
        assert moved(model, members, x) <= 1e-12


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_projected_hidden_states(layers, both, bias):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.LSTM(
                5, 9, layers, bias=bias, bidirectional=both, proj_size=4, batch_first=True
            )
            self.out = nn.Linear(4 * (1 + both), 3)

        def forward(self, x):
            return self.out(self.cells(x)[0])

    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(3, 6, 5, dtype=torch.float64)
    units, states = couple(model, x).groups
    assert (units.size, states.size) == (9, 4)
    for group in (units, states):
        for members in few_of(group):
            assert moved(model, members, x) <= 1e-12
    pruned = prunus.prune(model, "random-node", 0.5, data=x, layers="*")
    small = pruned.compact()
    kept = pruned.plan.kept
    assert (small.cells.hidden_size, small.cells.proj_size) == (
        kept[units.name], kept[states.name]
    )  # fmt: skip
    for other in (x, x[:, :2]):
        torch.testing.assert_close(small(other), pruned.model(other))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_width_of_real_decoders(name):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    small = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "pad_token_id": 0, "head_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-3,
    }  # fmt: skip
    model = kind(kind.config_class(**small)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    batch = {"input_ids": torch.randint(1, 40, (2, 9))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = Recipe(granularity=Node(alike="blocks", multiple_of=8))
        pruned = prunus.prune(model, recipe, 0.6, data=batch, layers="*")
        less = pruned.compact(batch)
    assert less.model.embed_tokens.embedding_dim < 32
    if name.startswith("Llama"):  # Gemma scales by the width it was built with
        assert less.config.hidden_size == less.model.embed_tokens.embedding_dim
    assert less.lm_head.weight is less.model.embed_tokens.weight
    for ids in (batch["input_ids"], batch["input_ids"][:, :4]):
        torch.testing.assert_close(less(ids).logits, pruned.model(ids).logits, rtol=1e-4, atol=1e-4)

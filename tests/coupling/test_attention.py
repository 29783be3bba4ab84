"""Heads of attention are units: fused and hand-written kernels, shared kv heads, real classes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from coupling_checks import moved
from prunus.coupling import couple


class Attend(nn.Module):
    """Attention with so many query and kv heads of width 4, in one of several forms."""

    def __init__(self, form, heads=4, shared=4):
        super().__init__()
        self.q, self.k = nn.Linear(6, heads * 4), nn.Linear(6, shared * 4)
        self.v, self.o = nn.Linear(6, shared * 4), nn.Linear(heads * 4, 3)
        self.form, self.repeats = form, heads // shared

    def forward(self, x):
        q, k, v = (p(x).unflatten(2, (-1, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
        if self.form != "gqa":
            k, v = (t.repeat_interleave(self.repeats, 1) for t in (k, v))
        return self.o(FORMS[self.form](q, k, v).transpose(1, 2).flatten(2))


def by_hand(q, k, v):
    scores = q @ k.transpose(2, 3) / 2 + torch.ones(q.shape[2], q.shape[2]).triu(1) * -9
    return scores.softmax(3) @ v


def by_einsum(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


def rotated(t):
    place = torch.arange(t.shape[2], dtype=t.dtype)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
    left, right = t.chunk(2, dim=-1)
    return t * place.cos() + torch.cat([-right, left], -1) * place.sin()


FORMS = {
    "fused": F.scaled_dot_product_attention,
    "gqa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    "by hand": by_hand,
    "einsum": by_einsum,
    "rotary": lambda q, k, v: by_hand(rotated(q), rotated(k), v),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [4, 2])
def test_a_head_is_a_unit(form, shared):
    model = Attend(form, 4, shared).double().eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    (group,) = couple(model, x).groups
    assert (group.size, group.exact, group.written) == (shared, True, False)
    assert (group.producers, group.consumers) == (("q", "k", "v"), ("o",))
    repeats = 4 // shared
    counts = {s.parameter: len(s.index) // group.size for s in group.slots}
    assert counts["q.weight"] == counts["o.weight"] == 4 * repeats
    assert counts["k.weight"] == counts["v.weight"] == counts["k.bias"] == 4
    for members in group.classes:
        assert moved(model, members, x) <= 1e-12
    rest = [m for m in group.classes[0] if (m.parameter, m.index) != ("o.weight", 0)]
    assert moved(model, rest, x) > 1e-6  # negative control: one column is left out


@pytest.mark.parametrize("form", FORMS)
def test_heads_are_cut_out(form):
    torch.manual_seed(1)
    model, x = Attend(form, 4, 2).eval(), torch.randn(8, 5, 6)
    pruned = prunus.prune(model, "importance-node+ls", 0.6, data=x)
    assert pruned.plan.kept == {"q": 1}
    small = pruned.compact()
    assert (small.q.out_features, small.k.out_features, small.o.in_features) == (8, 4, 8)
    torch.testing.assert_close(small(x), pruned.model(x))


@pytest.mark.parametrize("form", FORMS)
def test_query_heads_are_units_of_their_own(form):
    model = Attend(form, 6, 3).double().eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    coupling = couple(model, x, "query")
    (group,) = coupling.groups
    assert (group.size, group.pools, group.heads, group.exact) == (6, 3, "query", True)
    assert (group.producers, group.consumers) == (("q",), ("o",))
    assert "query heads that stay read it" in coupling.refused["k"]
    for members in group.classes:
        assert moved(model, members, x) <= 1e-12
    (alone,) = couple(Attend(form).double().eval(), x, "query").groups  # each has its own
    assert (alone.size, alone.pools, alone.heads) == (4, 1, "kv")


def test_pairing_by_remainder_is_caught():
    """Negative control: were query head h paired with kv head h mod 2, it would show."""
    model = Attend("fused", 4, 2).double().eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    (group,) = couple(model, x).groups
    wrong = []
    for m in group.classes[0]:
        head = m.index // 4
        place = {0: 0, 1: 2}.get(head, head) if m.parameter[0] in "qo" else head
        wrong.append(replace(m, index=place * 4 + m.index % 4))
    assert moved(model, group.classes[0], x) <= 1e-12
    assert moved(model, wrong, x) > 1e-3


def test_a_part_that_all_heads_read_stays():
    class Latent(nn.Module):
        """Keys of which a rotary part is one for all heads, as in multi-head latent attention."""

        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(6, 4 * 6), nn.Linear(6, 4 * 4)
            self.shared, self.v, self.o = nn.Linear(6, 2), nn.Linear(6, 4 * 4), nn.Linear(16, 3)

        def forward(self, x):
            q = self.q(x).unflatten(2, (-1, 6)).transpose(1, 2)
            k, v = (p(x).unflatten(2, (-1, 4)).transpose(1, 2) for p in (self.k, self.v))
            part = self.shared(x)[:, None].expand(-1, q.shape[1], -1, -1)
            k = torch.cat([k, part], -1)
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    model, x = Latent().double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    coupling = couple(model, x)
    (group,) = coupling.groups
    assert (group.size, group.heads, group.producers) == (4, "kv", ("q", "k", "v"))
    assert "all heads of the attention read it" in coupling.refused["shared"]
    for members in group.classes:
        assert moved(model, members, x) <= 1e-12


def test_constants_that_differ_by_head_write_the_heads_down():
    class Slopes(Attend):
        def __init__(self):
            super().__init__("fused")
            self.slopes = torch.tensor([0.5, 0.25, 0.1, 0.05])

        def forward(self, x):
            q, k, v = (p(x).unflatten(2, (-1, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
            scores = q @ k.transpose(2, 3) + self.slopes[:, None, None]
            return self.o((scores.softmax(3) @ v).transpose(1, 2).flatten(2))

    (group,) = couple(Slopes(), torch.randn(2, 5, 6)).groups
    assert group.written
    assert group.size == 4


def test_a_product_with_fixed_values_is_refused():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(5, 3)

        def forward(self, x):
            return self.b(self.a(x) @ x.transpose(1, 2)[:, :4])

    coupling = couple(Mixed(), torch.randn(2, 5, 6))
    assert coupling.groups == ()
    assert "sums over it with values that no removable channel makes" in coupling.refused["a"]


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
KV = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
VIT = {**SMALL, "image_size": 16, "patch_size": 8}
# Classes of transformers: settings, and the sizes of the groups that are exact.
REAL = {
    "LlamaForCausalLM": ({**KV, "attn_implementation": "eager"}, [2, 48]),
    "Qwen2ForCausalLM": (KV, [2, 48]),
    "Phi3ForCausalLM": (KV, [2, 48]),
    "GPTNeoXForCausalLM": (SMALL, [4, 48]),
    "GPT2LMHeadModel": (GPT2, [4, 128]),
    "BertModel": (SMALL, [4, 48]),
    "T5Model": (T5, [4, 48, 4, 4, 48]),
    "ViTModel": (VIT, [4, 48]),
}


@pytest.mark.parametrize("name", REAL)
def test_real_classes(name):
    """1e-10: float64 networks with outputs of order 1."""
    transformers = pytest.importorskip("transformers")
    settings, expected = REAL[name]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**settings)).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    inputs = {"input_ids": torch.randint(3, 60, (2, 9))}
    if name == "ViTModel":
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16, dtype=torch.float64)}
    if name == "T5Model":
        inputs["decoder_input_ids"] = torch.randint(3, 60, (2, 7))
    groups = [group for group in couple(model, inputs).groups if group.exact]
    assert [group.size for group in groups] == expected
    assert not any(group.written for group in groups)
    for group in groups:
        for unit in (0, group.size - 1):
            assert moved(model, group.classes[unit], **inputs) <= 1e-10, group.name

"""A stream in its principal axes: the same network, whose last channels matter least."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus import Recipe
from prunus.granularity import Node
from prunus.surgery.rotation import rotated

IDS = torch.randint(1, 30, (16, 9), generator=torch.Generator().manual_seed(0))


class Decoder(nn.Module):
    """Two residual blocks between an embedding of low rank and a head."""

    def __init__(self, norm=nn.RMSNorm, tied=False, scaled=False):
        super().__init__()
        wide = 16
        self.tokens, self.head = nn.Embedding(30, wide), nn.Linear(wide, 30, bias=False)
        self.norms = nn.ModuleList(norm(wide, eps=1e-3) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(wide, 20) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(20, wide) for _ in range(2))
        self.scale = nn.Parameter(torch.rand(wide)) if scaled else None
        low = torch.randn(30, 4) @ torch.randn(4, wide)
        self.tokens.weight.data.copy_(low + 0.05 * torch.randn(30, wide))
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids, attention_mask=None):
        x = self.tokens(ids)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            y = down(F.silu(up(norm(x))))
            x = x + (y if self.scale is None else y * self.scale)
        return self.head(self.norms[2](x))


def decoder(**options):
    torch.manual_seed(4)
    model = Decoder(**options).double().eval()
    for norm in model.norms:
        nn.init.uniform_(norm.weight, 0.3, 2.0)
    for down in model.down:
        down.weight.data.mul_(0.3)
    return model


@torch.no_grad()
def test_the_network_is_the_same_and_its_axes_are_principal():
    model = decoder()
    turned = rotated(model, IDS)
    torch.testing.assert_close(turned(IDS), model(IDS), rtol=1e-10, atol=1e-10)
    total = torch.zeros(16, 16, dtype=torch.float64)

    def note(module, inputs, output):
        total.add_(torch.einsum("bti,btj->ij", output, output))

    for norm in turned.norms:
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        norm.register_forward_hook(note)
    turned(IDS)
    off = total - total.diag().diag()
    assert float(off.abs().max()) < 2e-2 * float(total.diag().max())  # ε of the norms
    falling = total.diag()
    assert bool((falling[1:] <= falling[:-1] * (1 + 1e-2)).all())


@torch.no_grad()
def test_fewer_channels_cost_less_after_it():
    model = decoder()
    errors = []
    for network in (model, rotated(model, IDS)):
        pruned = prunus.prune(
            network, Recipe(granularity=Node()), {"down.0": 0.5, "*": 1.0}, data=IDS, layers="*"
        )
        small = pruned.compact(IDS)
        torch.testing.assert_close(small(IDS), pruned.model(IDS), rtol=1e-9, atol=1e-10)
        assert small.tokens.embedding_dim == 8
        errors.append(float((small(IDS) - model(IDS)).norm() / model(IDS).norm()))
    assert errors[1] < 0.75 * errors[0]  # 0.475 against 0.791


@torch.no_grad()
def test_padding_does_not_turn_the_axes():
    model = decoder()
    mask = torch.ones_like(IDS)
    mask[:, 6:] = 0
    other = IDS.clone()
    other[:, 6:] = 7
    one, two = (
        rotated(model, {"ids": ids, "attention_mask": mask}).tokens.weight for ids in (IDS, other)
    )
    torch.testing.assert_close(one.abs(), two.abs())


class LayerNorm(nn.LayerNorm):
    pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": LayerNorm}, "commutes with RMS norms alone"),
        ({"tied": True}, "tie_word_embeddings=False"),
        ({"scaled": True}, "`scale` scales or shifts single channels"),
    ],
)
def test_what_does_not_commute_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        rotated(decoder(**options), IDS)


def test_a_network_without_a_stream_is_refused():
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="one residual stream that starts at embeddings"):
        rotated(plain, torch.randn(8, 4))


@torch.no_grad()
def test_real_decoders():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    turned = rotated(model, {"input_ids": IDS})
    torch.testing.assert_close(turned(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    runs = [n.generate(IDS[:2], max_new_tokens=5, do_sample=False) for n in (model, turned)]
    assert torch.equal(runs[0], runs[1])

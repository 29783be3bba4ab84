"""Networks whose code uses `torch.func` or `torch.vmap`: what they hide is named, the rest goes."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

import prunus

UNSEEN = "or under torch.func or vmap"


class Mapped(nn.Module):
    """One layer runs sample by sample under vmap."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 14), nn.Linear(14, 5)

    def forward(self, x):
        return self.c(functional.relu(torch.vmap(self.b)(functional.relu(self.a(x)))))


class Steep(Mapped):
    """The network's own derivative is a part of its output."""

    def forward(self, x):
        def inner(x):
            return self.c(functional.relu(self.b(functional.relu(self.a(x)))))

        slope = torch.func.grad(lambda x: inner(x).sum())(x)
        return inner(x) + slope[:, :5]


class Called(Mapped):
    """A layer called by `torch.func.functional_call`, which hides nothing."""

    def forward(self, x):
        h = torch.func.functional_call(self.a, dict(self.a.named_parameters()), (x,))
        return self.c(functional.relu(self.b(functional.relu(h))))


def made(kind):
    torch.manual_seed(0)
    return kind().eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 12, generator=generator)
    return [(x, torch.randint(5, (16,), generator=generator))]


def pruned(model, recipe, **options):
    return prunus.prune(model, recipe, 0.5, data=batches(), progress=False, **options)


@pytest.mark.parametrize("kind", [Mapped, Steep])
def test_weights_alone_are_enough(kind):
    """The errors of what shows its inputs are those of the definition; the others have none."""
    model = made(kind)
    found = pruned(model, "magnitude")
    assert list(found.layers) == ["a", "b", "c"]
    assert found.layers["b"].error is None
    if kind is Mapped:
        gone = (model.a.weight - found.model.a.weight).detach()
        lost = functional.linear(batches()[0][0], gone)
        assert found.layers["a"].error == pytest.approx(float(lost.square().sum(1).mean()))


@pytest.mark.parametrize("recipe", ["wanda", "wanda+ls", "sparsegpt"])
def test_what_is_hidden_is_named(recipe):
    found = pruned(made(Mapped), recipe)
    assert list(found.layers) == ["a", "c"]
    assert found.not_pruned["b"].endswith(UNSEEN)
    plain = pruned(made(Called), recipe)
    assert list(plain.layers) == ["a", "b", "c"]
    assert dict(plain.not_pruned) == {}


def test_gradients_are_those_of_the_loss():
    model, (x, y) = made(Mapped), batches()[0]
    found = pruned(model, "snip")
    weights = [model.a.weight, model.b.weight, model.c.weight]
    grads = torch.autograd.grad(functional.cross_entropy(model(x), y), weights)
    scores = [(w * g).abs() for w, g in zip(weights, grads, strict=True)]
    least = torch.cat([s.flatten() for s in scores]).sort(descending=True).values[242]
    for name, score in zip("abc", scores, strict=True):
        assert torch.equal(found.masks[f"{name}.weight"], score >= least)


@pytest.mark.parametrize(
    ("kind", "recipe", "said"),
    [
        (Steep, "wanda", rf"No layer shows what was asked for: a, b, c: .* {UNSEEN}"),
        (Steep, "snip", r"takes derivatives by torch.func.* take a recipe without gradients"),
        (Mapped, "obd", r"Layer 'b' runs under torch.func or vmap.* Exclude the layer"),
        (Mapped, "taylor", r"Layer 'b' runs under torch.func or vmap.* Exclude the layer"),
        (Steep, "taylor", r"The model has no nodes to prune"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(kind, recipe, said):
    with pytest.raises(ValueError, match=said):
        pruned(made(kind), recipe)


def test_without_the_hidden_layer_slopes_are_taken():
    found = pruned(made(Mapped), "obd", exclude="b")
    assert list(found.layers) == ["a", "c"]


COMPILED = """
import torch
from torch import nn
import prunus

torch.manual_seed(0)
net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(20, 4)
plain = prunus.prune(net, "wanda+ls", 0.5, data=x)
compiled = prunus.prune(torch.compile(net, backend="eager"), "wanda+ls", 0.5, data=x)
assert set(compiled.masks) == {f"_orig_mod.{name}" for name in plain.masks}
for name, mask in plain.masks.items():
    assert torch.equal(compiled.masks[f"_orig_mod.{name}"], mask)
"""


def test_compiled_networks_show_their_layers():
    """What `torch.compile` traces is no transform, whatever it answers when asked for one.

    In a process of its own, since it would trace the type checks of the tests too.
    """
    ran = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

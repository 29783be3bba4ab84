"""Parameters that a model's code multiplies by without a layer: they lose edges where named."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import prunus
from prunus.weights import weight_at, weights_of


class Own(nn.Module):
    """Weights as a matrix for `F.linear`, one for `@`, a stack for einsum, and one layer."""

    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(16, 12) * 0.3)
        self.w2 = nn.Parameter(torch.randn(16, 14) * 0.3)
        self.stack = nn.Parameter(torch.randn(2, 14, 14) * 0.3)
        self.c = nn.Linear(14, 5)

    def forward(self, x):
        h = functional.relu(functional.linear(x, self.w1)) @ self.w2
        return self.c(torch.einsum("bi,eij->bj", functional.relu(h), self.stack))


ALL = ["w1", "w2", "stack", "c"]
SIZES = {"w1": 192, "w2": 224, "stack": 392, "c": 70}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Own().eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 12, generator=generator)
    return [(x, torch.randint(5, (32,), generator=generator))]


@pytest.mark.parametrize("with_data", [False, True])
def test_magnitude_removes_the_smallest_entries(model, with_data):
    data = batches() if with_data else None
    found = prunus.prune(model, "magnitude", 0.25, data=data, layers=ALL, progress=False)
    assert {n: int(r.mask.sum()) for n, r in found.layers.items()} == {
        n: round(size / 4) for n, size in SIZES.items()
    }
    assert dict(found.not_pruned) == {}
    assert found.cost_after.density == pytest.approx(0.25, abs=0.01)
    state = dict(found.model.named_parameters())
    for name, path in (("w1", "w1"), ("w2", "w2"), ("stack", "stack"), ("c", "c.weight")):
        before, after = model.get_parameter(path), state[path]
        least = before.abs().flatten().sort(descending=True).values[round(SIZES[name] / 4) - 1]
        assert torch.equal(after, torch.where(before.abs() >= least, before, 0.0))
        assert torch.equal(found.masks[path], after != 0)


def test_gradients_are_those_of_the_parameter(model):
    """SNIP by its definition, |w ∂L/∂w|, over all named weights together."""
    data = batches()
    found = prunus.prune(model, "snip", 0.5, data=data, layers=["w1", "w2"], progress=False)
    wanted = [model.w1, model.w2]
    loss = functional.cross_entropy(model(data[0][0]), data[0][1])
    scores = [(w * g).abs() for w, g in zip(wanted, torch.autograd.grad(loss, wanted), strict=True)]
    least = torch.cat([s.flatten() for s in scores]).sort(descending=True).values[207]
    for name, score in zip(("w1", "w2"), scores, strict=True):
        assert torch.equal(found.masks[name], score >= least)


def test_without_their_names_nothing_changes(model):
    """Neither all layers nor a glob mean them, so that recipes keep what they prune."""
    for layers in (None, "*", ["*", "c"]):
        found = prunus.prune(model, "magnitude", 0.5, layers=layers, progress=False)
        assert list(found.layers) == ["c"]
        assert "name its parameters in `layers`" in found.not_pruned[""]
    mixed = prunus.prune(model, "magnitude", 0.5, layers=["w1", "*"], progress=False)
    assert set(mixed.layers) == {"w1", "c"}
    assert "name its parameters" in mixed.not_pruned[""]  # of the others


@pytest.mark.parametrize("recipe", ["wanda", "magnitude+ls", "sparsegpt", "obd"])
def test_recipes_with_statistics_name_why_they_cannot(model, recipe):
    found = prunus.prune(model, recipe, 0.5, data=batches(), layers=ALL, progress=False)
    assert list(found.layers) == ["c"]
    assert set(found.not_pruned) == {"w1", "w2", "stack"}
    with pytest.raises(ValueError, match=r"No layer shows what was asked for: w1, w2: "):
        prunus.prune(model, recipe, 0.5, data=batches(), layers=["w1", "w2"], progress=False)


def test_they_are_saved_compressed_and_read_again(model, tmp_path):
    found = prunus.prune(model, "magnitude", 0.5, layers=ALL, progress=False)
    again = prunus.load(found.save(tmp_path / "net"), Own())
    packed = prunus.export.compress(found, tmp_path / "packed")
    unpacked = prunus.export.decompress(packed.path, Own())
    for other in (again, packed.pruned, unpacked):
        assert set(other.layers) == set(ALL)
        for key, value in found.model.state_dict().items():
            assert torch.equal(other.model.state_dict()[key], value)
    assert unpacked.cost_after.density == found.cost_after.density


def test_a_bilinear_layer_loses_edges_where_it_is_named():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Bilinear(4, 6, 3)

        def forward(self, x):
            return self.b(self.a(x), x)

    torch.manual_seed(0)
    model = Products().eval()
    assert list(prunus.prune(model, "magnitude", 0.5, progress=False).layers) == ["a"]
    found = prunus.prune(model, "magnitude", 0.5, layers=["a", "b"], progress=False)
    assert int(found.masks["b.weight"].sum()) == 36
    assert found.masks["b.weight"].shape == (3, 4, 6)


def test_what_a_view_knows_is_no_raw_parameter(model):
    known = set(weights_of(model))
    assert set(weights_of(model, ["c", "c.weight", "nothing", "c.bias"])) == known
    assert set(weights_of(model, "w1")) == known | {"w1"}
    assert weight_at(model, "stack").matrix().shape == (2, 196)
    assert list(weights_of(model)) == ["c"]
    with pytest.raises(ValueError, match=r"Unknown layer or glob 'w9'"):
        prunus.prune(model, "magnitude", 0.5, layers=["w9"], progress=False)


def test_one_tensor_under_two_names_is_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.w = self.a.weight

        def forward(self, x):
            return functional.linear(self.a(x), self.w)

    with pytest.raises(ValueError, match=r"'w' cannot be pruned: its weight is tied to a.weight"):
        prunus.prune(Tied(), "magnitude", 0.5, layers=["w"], progress=False)

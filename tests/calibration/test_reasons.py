"""Modules whose weights cannot be pruned as they stand: each is one line with the remedy."""

import re
import warnings

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import prunus
from prunus.calibration.reasons import listed
from prunus.calibration.select import prunable


def masked(layer):
    torch_prune.l1_unstructured(layer, "weight", 0.3)
    return layer


def old_norm(make):
    def build(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to use parametrizations
            return make(layer)

    return build


COMPUTED = {
    "torch.nn.utils.prune": (
        masked,
        "its weight is masked by torch.nn.utils.prune. Make it plain first with "
        "torch.nn.utils.prune.remove(module, 'weight')",
        lambda m: torch_prune.remove(m, "weight"),
    ),
    "spectral_norm": (
        old_norm(nn.utils.spectral_norm),
        "its weight is computed by spectral_norm. Make it plain first with "
        "torch.nn.utils.remove_spectral_norm(module, 'weight')",
        lambda m: nn.utils.remove_spectral_norm(m, "weight"),
    ),
    "weight_norm": (
        old_norm(nn.utils.weight_norm),
        "its weight is computed by weight_norm. Make it plain first with "
        "torch.nn.utils.remove_weight_norm(module, 'weight')",
        lambda m: nn.utils.remove_weight_norm(m, "weight"),
    ),
    "parametrisation": (
        parametrizations.spectral_norm,
        "its weight is parametrised. Make it plain first with "
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')",
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
}


@pytest.mark.parametrize("recipe", ["magnitude", "wanda+ls"])
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_are_computed(name, ran, recipe):
    torch.manual_seed(0)
    make, reason, remedy = COMPUTED[name]
    net, x = nn.Sequential(make(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 4)), torch.randn(9, 6)
    net.eval()
    if ran:
        net(x)  # hooks leave a weight that is no leaf
    before = net(x).detach()
    pruned = prunus.prune(net, recipe, 0.5, data=x)
    assert pruned.not_pruned == {"0": reason}
    assert pruned.cost_after.density == 0.5
    assert int((pruned.model[2].weight == 0).sum()) == 16
    torch.testing.assert_close(net(x), before)
    remedy(net[0])
    assert set(prunus.prune(net, recipe, 0.5, data=x).layers) == {"0", "2"}


def refusal(net):
    with pytest.raises(ValueError, match=r"^The model has no prunable layers left") as caught:
        prunus.prune(net, "magnitude", 0.5)
    said = str(caught.value)
    assert said.endswith("). Check `layers` and `exclude`.")
    return said.partition("refused: ")[2].removesuffix("). Check `layers` and `exclude`.")


def small():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def test_weights_that_are_not_there():
    with torch.device("meta"):
        net = small()
    why = "its weight is on the meta device, so not loaded. Load the weights first"
    assert refusal(net) == f"0, 2: {why}"
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyConv1d(3, 2))
    message = (
        "The model is not ready: 0, 2 have no shapes yet (lazy modules). Run it on one batch first."
    )
    for ask in (
        lambda: prunus.prune(lazy, "magnitude", 0.5),
        lambda: prunus.prune(lazy, "wanda", 0.5, data=torch.randn(2, 3, 5)),
        lambda: prunus.calibrate(lazy, torch.randn(2, 3, 5)),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            ask()
    lazy(torch.randn(2, 3, 5))
    assert prunus.prune(lazy, "magnitude", 0.5).not_pruned == {}


def test_networks_that_are_ready_in_part():
    part = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4, device="meta"))
    counted = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d(affine=False))  # lazy buffers
    for net, x, why in (
        (part, torch.randn(3, 6), "2 lie on the meta device, so are not loaded"),
        (counted, torch.randn(2, 3, 5, 5), "1 have no shapes yet"),
    ):
        for ask in (
            lambda net=net: prunus.prune(net, "magnitude", 0.5),
            lambda net=net, x=x: prunus.prune(net, "importance-node", 0.5, data=x),
            lambda net=net, x=x: prunus.calibrate(net, x),
        ):
            with pytest.raises(ValueError, match=f"^The model is not ready: {why}"):
                ask()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_networks_are_named_in_full():
    net = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear})
    said = refusal(net)
    assert said == (
        "0, 2: torch.ao.nn.quantized.dynamic.modules.linear.Linear is quantised. Prune the plain "
        "model, then quantise it"
    )
    recurrent = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(4, 3)), {nn.LSTM})
    assert "modules.rnn.LSTM is quantised. Prune the plain model, then quantise it" in refusal(
        recurrent
    )
    prepared = small().train()
    prepared.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    assert refusal(torch.ao.quantization.prepare_qat(prepared)) == (
        "0, 2: torch.ao.nn.qat.modules.linear.Linear quantises its weight in its forward. Prune "
        "the plain model, then prepare it for quantisation"
    )


def test_whole_numbers_as_weights():
    net = small()
    net[0].weight = nn.Parameter(torch.ones(8, 6, dtype=torch.int8), requires_grad=False)
    pruned = prunus.prune(net, "magnitude", 0.5)
    assert pruned.not_pruned == {
        "0": "its weight is stored as int8, so quantised. Prune the model before it is quantised"
    }


def test_complex_weights_are_no_quantised_ones():
    net = nn.Sequential(nn.Linear(6, 8, dtype=torch.cfloat), nn.Linear(8, 4, dtype=torch.cdouble))
    assert refusal(net) == (
        "0: its weight is complex64, and scores are of reals; "
        "1: its weight is complex128, and scores are of reals"
    )


def test_foreign_classes_are_named_in_full_and_torchs_in_short():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))

        def forward(self, x):
            return x @ self.weight @ x.T

    net = nn.Sequential(Bilinear(), nn.Bilinear(2, 2, 1), nn.Embedding(3, 2))
    _, refused = prunable(net)
    cure = (
        "has no weight view; register one with prunus.layer.register_view, or name its parameters "
        "in `layers` for a recipe without statistics"
    )
    kind = f"{__name__}.{Bilinear.__qualname__}"
    assert refused == {
        "0": f"{kind} {cure}", "1": f"Bilinear {cure}", "2": f"Embedding {cure}",
    }  # fmt: skip


def test_a_refusal_of_nodes_says_why_of_every_layer():
    class Scaled(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight * 0.5, self.bias)

    x, ends = torch.randn(9, 6), "its outputs are the network's outputs"
    net = nn.Sequential(Scaled(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    kind = f"{__name__}.{Scaled.__qualname__}"
    cure = (
        "has no weight view; register one with prunus.layer.register_view, or name its parameters "
        "in `layers` for a recipe without statistics"
    )
    for model, said in (
        (net, f"2: {ends}; 0: {kind} {cure}"),
        (nn.Linear(6, 4), f"the model itself: {ends}"),
    ):
        message = f"The model has no nodes to prune in the selected layers ({said})."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            prunus.prune(model, "importance-node", 0.5, data=x)


def test_each_cause_once():
    reasons = {f"block.{i}": "tied" for i in range(9)} | {"": "meta"}
    assert listed(reasons, most=2) == "block.0, block.1 and 7 more: tied; the model itself: meta"


def test_one_module_under_two_names_is_pruned_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
            self.body = nn.Sequential(self.first, nn.ReLU(), self.second)

        def forward(self, x):
            return self.body(x)

    net, x = Net(), torch.randn(9, 6)
    for recipe in ("magnitude", "wanda+ls"):
        pruned = prunus.prune(net, recipe, 0.5, data=x)
        assert list(pruned.layers) == ["first", "second"]
        assert not pruned.not_pruned
        assert pruned.cost_after.density == 0.5
        assert pruned.model.first is pruned.model.body[0]
        assert int((pruned.model.first.weight == 0).sum()) == 24


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 2), nn.Conv1d(4, 4, 3)])
def test_a_bare_layer_is_a_model(layer, tmp_path):
    torch.manual_seed(0)
    x = {"Linear": (9, 6), "Conv2d": (9, 3, 5, 5), "Conv1d": (9, 4, 7)}[type(layer).__name__]
    data = torch.randn(x)
    half = layer.weight.numel() // 2
    for recipe in ("magnitude", "wanda+ls", "sparsegpt", "random-edge"):
        pruned = prunus.prune(layer, recipe, 0.5, data=data)
        assert list(pruned.layers) == [""]
        assert list(pruned.masks) == ["weight"]
        assert int((pruned.model.weight != 0).sum()) == half
        assert pruned.cost_after.density == 0.5
        assert "density" in pruned.summary()
    optimizer = torch.optim.SGD(pruned.model.parameters(), lr=0.1)
    pruned.hold(optimizer)
    pruned.model(data).square().mean().backward()
    optimizer.step()
    assert int((pruned.model.weight != 0).sum()) == half
    pruned.save(tmp_path)
    again = prunus.load(tmp_path, layer)
    assert torch.equal(again.model.weight, pruned.model.weight)
    assert torch.equal(again.layers[""].mask, pruned.layers[""].mask)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm])
def test_a_recurrent_layer_with_one_computed_weight(norm):
    torch.manual_seed(0)
    net = nn.LSTM(4, 3, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm(net, "weight_hh_l0")
    x = torch.randn(5, 6, 4)
    for recipe in ("magnitude", "wanda"):
        pruned = prunus.prune(net, recipe, 0.5, data=[x], layers="*")
        assert list(pruned.layers) == ["weight_ih_l0"]
        assert list(pruned.not_pruned) == ["weight_hh_l0"]
        assert "Make it plain first" in pruned.not_pruned["weight_hh_l0"]
        assert int((pruned.model.weight_ih_l0 == 0).sum()) == 24


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchscript_says_to_prune_before_it_is_compiled():
    torch.manual_seed(0)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.ReLU()))
    model, x = nn.Sequential(nn.Linear(3, 4), scripted, nn.Linear(6, 2)).eval(), torch.randn(5, 3)
    pruned = prunus.prune(model, "magnitude", 0.5, data=x)
    assert pruned.not_pruned["1.0"].startswith("its code is TorchScript")
    assert all(p.is_leaf and p.requires_grad for p in pruned.model.parameters())
    assert pruned.model[1](x.new_ones(1, 4)).equal(scripted(x.new_ones(1, 4)))
    with pytest.raises(ValueError, match="Prune the plain module, then script or trace it"):
        prunus.prune(scripted, "magnitude", 0.5)

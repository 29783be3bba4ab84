"""LoRA on pruned networks: the layer under the adapter is pruned, and merging keeps every zero."""

import importlib.util

import pytest
import torch
from torch import nn

import prunus
from prunus.integrations import merge_adapters

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::DeprecationWarning"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 20), nn.Linear(20, 5)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


@pytest.fixture
def adapted():
    """A pruned network with an adapter on its first layer, as training has left it."""
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mix = torch.randn(12, 12)
        x = torch.randn(200, 12) @ mix  # correlated inputs, for which refitting pays
        pruned = prunus.prune(Net().eval(), "magnitude", 0.5, data=x)
        model = peft.get_peft_model(pruned.model, peft.LoraConfig(r=3, target_modules=["a"]))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        return pruned, model.eval(), x


def test_merging_keeps_zeros_and_refitting_wins_some_back(adapted):
    pruned, model, x = adapted
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain, fitted = merge_adapters(model), merge_adapters(model, data=x)
    layer = model.base_model.model.a
    whole = (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
    mask = pruned.layers["a"].mask
    assert isinstance(plain.model, Net)
    assert list(plain.model.state_dict()) == list(Net().state_dict())
    torch.testing.assert_close(plain.model.a.weight, whole * mask)
    assert torch.equal(plain.masks["a.weight"], mask)
    for merged in (plain, fitted):
        assert torch.equal(merged.model.a.weight != 0, mask)
        assert merged.layers["a"].zeros == int((~mask).sum())
        assert torch.equal(merged.model.b.weight, pruned.model.b.weight)
    delta = layer.get_delta_weight("default").detach()
    share = float(delta[~mask].square().sum() / delta.square().sum())
    assert plain.layers["a"].lost == pytest.approx(share, rel=1e-5)

    def error(weight):
        return float((x @ (whole - weight).T).square().sum() / (x @ delta.T).square().sum())

    assert fitted.layers["a"].lost == pytest.approx(error(whole * mask), rel=1e-4)
    assert fitted.layers["a"].left == pytest.approx(error(fitted.model.a.weight.detach()), rel=1e-3)
    assert fitted.layers["a"].left < 0.8 * fitted.layers["a"].lost
    with torch.no_grad():  # where nothing is pruned, merging is the sum
        layer.base_layer.weight.copy_(torch.where(mask, whole, torch.full_like(whole, 0.1)))
        torch.testing.assert_close(merge_adapters(model).model(x), model(x), rtol=1e-4, atol=1e-4)
        layer.base_layer.weight.copy_(before["base_model.model.a.base_layer.weight"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_pruning_a_model_with_adapters_leaves_them_dense(adapted):
    _, model, x = adapted
    again = prunus.prune(model, "wanda", 0.25, data=x)
    assert set(again.layers) == {"base_model.model.a.base_layer", "base_model.model.b"}
    (why,) = {w for n, w in again.not_pruned.items() if "lora_" in n}
    assert "an adapter of PEFT, which stays dense" in why
    for name, parameter in again.model.named_parameters():
        if "lora_" in name:
            assert bool((parameter != 0).all())


def test_what_is_no_model_with_adapters(adapted):
    pruned, model, x = adapted
    with pytest.raises(TypeError, match=r"takes a peft\.PeftModel, got Net\. Wrap the pruned"):
        merge_adapters(pruned.model)
    import peft

    dora = peft.get_peft_model(
        Net().eval(), peft.LoraConfig(r=2, target_modules=["a"], use_dora=True)
    )
    with pytest.raises(ValueError, match="is DoRA, which scales the sum"):
        merge_adapters(dora)

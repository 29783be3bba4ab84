"""Channels under a layer or group norm: whole by default, cut and measured where that is asked."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cut_models
import prunus
from prunus import Budget, Recipe
from prunus.ambient import quiet
from prunus.granularity import Node
from prunus.surgery import CompactionError, compact
from prunus.surgery.norms import fold_rms, scale_epsilon
from prunus.surgery.pinned import PinnedChannels
from prunus.surgery.verify import verify_equal
from prunus.theory.gap.statement import VacuousWarning

CUT = Recipe(granularity=Node(inexact=True))
NETS = {"layer-norm": "fc1", "convnext": "stem", "group-norm": "conv1"}


@pytest.mark.parametrize("name", NETS)
def test_whole_by_default(name):
    model, x = cut_models.build(name)
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    why = pruned.not_pruned[NETS[name]]
    assert "takes its statistics over its channels" in why
    assert "Node(inexact=True)" in why
    small = pruned.compact(x)
    width = small.get_submodule(NETS[name]).weight.shape[0]
    assert width == model.get_submodule(NETS[name]).weight.shape[0]
    torch.testing.assert_close(small(x), pruned.model(x))


@pytest.mark.parametrize("name", NETS)
def test_cut_and_measured_where_asked(name, tmp_path):
    model, x = cut_models.build(name)
    pruned = prunus.prune(model, CUT, 0.5, data=x)
    assert NETS[name] not in pruned.not_pruned
    small = pruned.compact(x)
    assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters
    channels = 4 if name == "group-norm" else 1  # of a class
    width = small.get_submodule(NETS[name]).weight.shape[0]
    assert width == channels * pruned.plan.kept[NETS[name]]
    with torch.no_grad():
        change = float((small(x) - pruned.model(x)).norm() / pruned.model(x).norm())
    assert change > 1e-3
    (note,) = [n for n in pruned.notes if n.startswith("inexact:")]
    assert f"differ from the masked one's by {change:.3g} of their norm" in note
    assert note in " ".join(pruned.summary().split())
    pruned.save(tmp_path, example=x)
    again = prunus.load(tmp_path, model)
    assert note in again.notes
    torch.testing.assert_close(again.compact()(x), small(x))
    for other in (x[:1], 1e3 * x):  # a network of its own, not one that needs the example
        assert small(other).isfinite().all()
    report = pruned.report(tmp_path / "page.html").read_text()
    assert "inexact: channels under a norm were cut" in report


def test_the_cut_network_by_hand():
    """Rows, columns and norm parameters that stay, with a norm of their own."""
    model, x = cut_models.build("layer-norm")
    pruned = prunus.prune(model, CUT, 0.5, data=x)
    small = pruned.compact(x)
    kept = pruned.model.norm.weight != 0
    m = pruned.model
    h = F.layer_norm(F.linear(x, m.fc1.weight[kept], m.fc1.bias[kept]), (int(kept.sum()),),
                     m.norm.weight[kept], m.norm.bias[kept], m.norm.eps)  # fmt: skip
    h = F.linear(F.relu(h), m.fc2.weight[:, kept], m.fc2.bias)
    torch.testing.assert_close(small(x), m.fc3(F.relu(h)))
    assert small.norm.normalized_shape == (int(kept.sum()),)


def test_group_norms_keep_their_groups():
    model, x = cut_models.build("group-norm")
    small = prunus.prune(model, CUT, 0.5, data=x).compact(x)
    assert (small.norm1.num_groups, small.norm1.num_channels) == (4, 4)
    assert small.norm2.num_groups == small.norm2.num_channels == small.conv2.out_channels < 6
    assert small.norm3.num_groups == small.norm3.num_channels == small.conv3.out_channels


def test_compact_of_a_module_cuts_inexactly_only_when_asked():
    model, x = cut_models.build("layer-norm")
    masked = prunus.prune(model, CUT, 0.5, data=x).model
    with pytest.warns(PinnedChannels, match=r"of fc1 \(the norm `norm` \(LayerNorm\) takes its"):
        assert compact(masked, x).fc1.out_features == 16
    assert compact(masked, x, inexact=True).fc1.out_features < 16
    with torch.no_grad():  # columns alone: the channel still counts in the statistics
        model.fc2.weight[:, :4] = 0
    assert compact(model, x, inexact=True).fc1.out_features == 16


def test_an_inexact_cut_is_verified_too():
    """The reference is the masked network with the statistics of what stays."""
    model, x = cut_models.build("layer-norm")
    pruned = prunus.prune(model, CUT, 0.5, data=x)
    small = pruned.compact(x)
    kept = {"norm": (pruned.model.norm.weight != 0).nonzero().flatten()}
    assert verify_equal(pruned.model, small, x, kept={}, rtol=1e-4, statistics=kept) > 1e-3
    with pytest.raises(CompactionError, match="not equal"):
        verify_equal(pruned.model, small, x, kept={}, rtol=1e-4)
    with torch.no_grad():
        small.norm.bias += 1e-3
    with pytest.raises(CompactionError, match="not equal"):
        verify_equal(pruned.model, small, x, kept={}, rtol=1e-4, statistics=kept)


def test_norms_without_weights_stay_whole():
    """What a norm that no tensor names makes of the rest cannot be checked."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.c(F.relu(self.b(F.layer_norm(self.a(x), (8,)))))

    torch.manual_seed(0)
    pruned = prunus.prune(Net(), CUT, 0.5, data=torch.randn(8, 4))
    assert "cannot be made narrower" in pruned.not_pruned["a"]
    assert pruned.compact().a.out_features == 8


def test_the_flag_is_checked_and_shown():
    assert repr(Node()) == "Node(multiple_of=1)"
    assert repr(Node(inexact=True)) == "Node(multiple_of=1, inexact=True)"
    assert Recipe(granularity=Node()).digest != CUT.digest
    with pytest.raises(ValueError, match="`inexact` must be True or False, got 1"):
        Node(inexact=1)


def test_an_rms_norm_over_fewer_inputs_gives_the_same_numbers():
    """With an epsilon that weighs as much as the inputs, it has to shrink with their number."""
    torch.manual_seed(0)
    kept = torch.tensor([0, 2, 3, 6, 7])
    norm, small = (nn.RMSNorm(n, eps=0.4, dtype=torch.float64) for n in (8, 5))
    nn.init.normal_(norm.weight)
    with torch.no_grad():
        small.weight.copy_(norm.weight[kept])
    fold_rms(small, 8)
    scale_epsilon(small, 8)
    x = torch.zeros(6, 8, dtype=torch.float64)
    x[:, kept] = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(small(x[:, kept]), norm(x)[:, kept])


def gap(model, network, x):
    """Root mean square distance of the outputs, as a share of the dense network's."""
    with torch.no_grad():
        dense, other = model(x), network(x)
    return float(((other - dense).square().sum() / dense.square().sum()).sqrt())


def test_a_gap_budget_holds_for_the_compact_network():
    """Planned on it; the masked one, with the norm's statistics over zeros, is beyond the limit."""
    model, x = cut_models.build("layer-norm", samples=64)
    pruned = prunus.prune(model, CUT, Budget(gap=0.5), data=x)
    small = pruned.compact()
    assert pruned.plan.value == pytest.approx(gap(model, small, x), rel=1e-5)
    assert gap(model, small, x) <= 0.5 < gap(model, pruned.model, x)
    assert "the compact networks of" in pruned.plan.notes[0]


def test_a_drop_budget_holds_for_the_compact_network():
    model, x = cut_models.build("layer-norm", samples=64)
    budget = Budget(drop=0.2, metric="gap", higher_is_better=False, tries=5)
    pruned = prunus.prune(
        model, CUT, budget, data=x, evaluate=lambda network: {"gap": gap(model, network, x)}
    )
    assert pruned.plan.value == pytest.approx(gap(model, pruned.compact(), x), rel=1e-5)
    assert pruned.plan.value <= 0.2
    assert abs(gap(model, pruned.model, x) - pruned.plan.value) > 1e-3
    assert any("`evaluate` was given compact networks" in note for note in pruned.plan.notes)


def test_a_certificate_says_which_network_it_is_about():
    model, x = cut_models.build("layer-norm", samples=64)
    pruned = prunus.prune(model, CUT, 0.5, data=x[:32])
    with quiet(VacuousWarning):
        masked = prunus.certify(model, pruned, data=x[32:])
        small = prunus.certify(model, pruned.compact(), data=x[32:])
        exact = prunus.certify(model, prunus.prune(model, Recipe(), 0.5, data=x[:32]), data=x[32:])
    assert any("is another network than the masked one" in said for said in masked.cautions)
    assert not small.cautions
    assert not exact.cautions
    assert masked.gaps != small.gaps

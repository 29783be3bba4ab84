"""The distillation loss against a plain loop, and slimming's pull on scales."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
import prunus
from prunus.training import distillation, slimming


def setup():
    torch.manual_seed(0)
    x, y = torch.randn(10, 6), torch.arange(10) % 4
    return models.MLP((6, 9, 4)), models.MLP((6, 9, 4)), x, y


@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 0.9), (1.0, 0.5), (2.0, 1.0)])
def test_the_loss_is_that_of_the_definition(temperature, weight):
    """Sample by sample and class by class, in double precision."""
    teacher, student, x, y = setup()
    loss = distillation(teacher, temperature=temperature, weight=weight)
    out, soft = student(x), teacher(x).detach()
    own, expected = out.detach(), 0.0
    for i in range(10):
        p = (soft[i].double() / temperature).softmax(0)
        q = (own[i].double() / temperature).softmax(0)
        expected += weight * temperature**2 * float((p * (p / q).log()).sum()) / 10
        expected -= (1 - weight) * float(own[i].double().log_softmax(0)[y[i]]) / 10
    assert float(loss(out, (x, y)).detach()) == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_the_student_alone():
    teacher, student, x, y = setup()
    loss = distillation(teacher)
    loss(student(x), (x, y)).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    before = float(loss(student(x), (x, y)).detach())
    with torch.no_grad():
        for p in teacher.parameters():  # it was copied
            p.zero_()
    assert float(loss(student(x), (x, y)).detach()) == before


def test_the_ends_of_the_weight():
    teacher, student, x, y = setup()
    plain = distillation(teacher, weight=0.0)
    assert torch.equal(plain(student(x), (x, y)), F.cross_entropy(student(x), y))
    own = distillation(teacher, weight=0.0, loss=lambda out, batch: out.square().mean())
    assert torch.equal(own(student(x), (x, y)), student(x).square().mean())
    free = distillation(teacher, weight=1.0)
    assert float(free(teacher(x), x).detach().abs()) < 1e-6  # no labels, and nothing to learn
    assert float(free(student(x), x).detach()) > 0
    with pytest.raises(ValueError, match=r"^The batch has no labels"):
        distillation(teacher)(student(x), x)
    with pytest.raises(ValueError, match=r"^`temperature` must be a finite number > 0"):
        distillation(teacher, temperature=0)
    with pytest.raises(ValueError, match=r"^`weight` must lie in \[0, 1\]"):
        distillation(teacher, weight=1.5)
    with pytest.raises(ValueError, match=r"^Teacher and student must give outputs of one shape"):
        distillation(teacher)(student(x)[:, :3], (x, y))
    with pytest.raises(ValueError, match=r"^A model for distillation must give logits"):
        distillation(teacher)("text", (x, y))


class Text(nn.Module):
    """Logits of every position, in an output as language models give it."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


def test_positions_that_are_padding_do_not_count():
    torch.manual_seed(0)
    teacher, student = Text(), Text()
    ids = torch.randint(7, (2, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = distillation(teacher, weight=1.0)(
        student(ids), {"input_ids": ids, "attention_mask": mask}
    )
    with torch.no_grad():
        logits = teacher(ids).logits.double(), student(ids).logits.double()
    total, count = 0.0, 0
    for row, column in mask.nonzero().tolist():
        p = (logits[0][row, column] / 4).softmax(0)
        q = (logits[1][row, column] / 4).softmax(0)
        total, count = total + 16 * float((p * (p / q).log()).sum()), count + 1
    assert float(found.detach()) == pytest.approx(total / count, rel=1e-5)
    labels = ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    both = distillation(teacher, weight=0.25)(student(ids), batch)
    expected = 0.25 * found + 0.75 * F.cross_entropy(
        student(ids).logits.flatten(0, 1), labels.flatten()
    )
    torch.testing.assert_close(both, expected)


def test_slimming_adds_the_sign_of_cuttable_scales():
    model, x = conv()
    with torch.no_grad():
        for norm in (model.norm1, model.norm2):
            norm.weight[::2] *= -1
            norm.weight[1] = 0.0
    other = copy.deepcopy(model)
    target = torch.randn(len(x), model(x).shape[-1], dtype=x.dtype)
    own = torch.optim.SGD([{"params": model.parameters(), "weight_decay": 0.0}], lr=0.1)
    with slimming(model, x, 0.01, optimizer=own) as pull:
        F.mse_loss(model(x), target).backward()
        loss = F.mse_loss(other(x), target)
        loss = loss + 0.01 * sum(other.get_parameter(n).abs().sum() for n in pull.scales)
        loss.backward()
        own.step()
    second = torch.optim.SGD(other.parameters(), lr=0.1)
    second.step()
    assert pull.scales
    assert all(n.endswith("weight") and "norm" in n for n in pull.scales)
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()))
    assert not own._optimizer_step_pre_hooks
    # Without the optimizer, as gradients arrive.
    model.zero_grad()
    plain = copy.deepcopy(model)
    with slimming(model, x, 0.01) as pull:
        F.mse_loss(model(x), target).backward()
    F.mse_loss(plain(x), target).backward()
    for name, parameter in model.named_parameters():
        extra = 0.01 * parameter.detach().sign() if name in pull.scales else 0.0
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad + extra)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def conv():
    torch.manual_seed(0)
    return models.ConvFlatten(), torch.randn(6, 2, 8, 8)


def test_slimming_says_what_does_not_fit():
    model, x = conv()
    decaying = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.warns(RuntimeWarning, match=r"^The optimizer decays 'norm1\.weight' and 1 more"):
        slimming(model, x, optimizer=decaying).remove()
    with pytest.raises(ValueError, match=r"^`strength` must be a finite number > 0"):
        slimming(model, x, 0)
    bare = models.MLP((6, 9, 4))
    with pytest.raises(ValueError, match=r"^No batch norm stands behind channels"):
        slimming(bare, torch.randn(3, 6))


def test_slimming_leaves_scales_of_channels_that_cannot_be_cut_alone():
    """A layer norm reads all channels of the first batch norm at once; the second has none."""
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.LayerNorm(8),
        nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    with slimming(model, torch.randn(4, 6)) as pull:
        assert pull.scales == ("5.weight",)


def test_slimming_spreads_the_scales_and_bn_scale_then_prunes():
    """The pull makes the smallest half of the scales smaller than without it."""
    smallest = {}
    for strength in (1e-9, 0.03):
        model, x = conv()
        y = torch.arange(6) % 4
        own = torch.optim.SGD(model.parameters(), lr=0.05)
        with slimming(model, x, strength, optimizer=own):
            for _ in range(60):
                own.zero_grad()
                F.cross_entropy(model(x), y).backward()
                own.step()
        scales = model.norm2.weight.detach().abs().sort().values
        smallest[strength] = float(scales[:4].sum() / scales.sum())
        pruned = prunus.prune(model, "bn-scale", 0.5, data=x, layers="conv*")
        assert pruned.cost_after.density <= 0.5
    assert smallest[0.03] < smallest[1e-9]

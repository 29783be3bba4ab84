"""SNIP, GraSP and SynFlow: formulas, recipes at initialisation, and layer collapse."""

import math

import pytest
import torch
from torch import nn

import prunus
from prunus.scores import SNIP, grasp, snip, snip_normalised, synflow
from prunus.surgery.connected import connection
from reference import at_init_scores as reference

NAMES = ("1", "3", "5")


def network(widths=(5, 6, 4, 3), seed=0, dtype=torch.float64):
    """Flatten, then linear layers 1, 3, 5 with ReLU and biases that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [nn.Flatten()]
        for i in range(len(widths) - 1):
            if i:
                parts.append(nn.ReLU())
            parts.append(nn.Linear(widths[i], widths[i + 1]))
        return nn.Sequential(*parts).to(dtype)


def batches(count=3, size=8, features=5, classes=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size + i, features, generator=generator, dtype=dtype),
            torch.randint(classes, (size + i,), generator=generator),
        )
        for i in range(count)
    ]


def test_snip_is_the_connection_sensitivity():
    model, data = network(), batches()
    found = prunus.calibrate(model, data, ("grad",))
    for name in NAMES:
        weight = model.get_submodule(name).weight
        expected = reference.connection_sensitivity(model, weight, data)
        score = snip(found[name].weight, found[name].grad)
        # central differences of step 1e-6 in float64
        torch.testing.assert_close(score, expected.detach(), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(SNIP()(found[name]), score)


def test_snip_keeps_the_sign_while_it_sums():
    """Two batches whose gradients cancel leave no sensitivity."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    data = [(x, torch.zeros(1)), (-x, torch.zeros(1))]
    found = prunus.calibrate(
        model, data, ("grad",), loss=lambda output, batch: (output * batch[0].sum().sign()).sum()
    )
    aligned = snip(found["0"].weight, found["0"].grad)
    opposed = prunus.calibrate(model, data, ("grad",), loss=lambda output, batch: output.sum())
    assert float(aligned.min()) > 0
    assert float(snip(opposed["0"].weight, opposed["0"].grad).abs().max()) == 0


def test_snip_normalised_sums_to_one():
    weights = {"a": torch.ones(2, 2), "b": torch.full((1, 3), -2.0)}
    grads = {"a": torch.full((2, 2), -1.0), "b": torch.ones(1, 3)}
    found = snip_normalised(weights, grads)
    assert sum(float(s.sum()) for s in found.values()) == pytest.approx(1)
    torch.testing.assert_close(found["b"] / found["a"][0, 0], torch.full((1, 3), 2.0))
    with pytest.raises(ValueError, match="All connection sensitivities are zero"):
        snip_normalised(weights, {k: torch.zeros_like(g) for k, g in grads.items()})


def test_grasp_is_weight_times_hessian_times_gradient():
    model, data = network(), batches()
    found = prunus.calibrate(model, data, ("hessian_grad",))
    parameters = [model.get_submodule(name).weight for name in NAMES]
    # the gradient is of order 1/200, so a step of 1000 moves the weights by a few units of 1e-3
    curved = reference.hessian_gradient(model, parameters, data, 200.0, step=1e-2)
    for name, expected in zip(NAMES, curved, strict=True):
        torch.testing.assert_close(found[name].hessian_grad, expected, rtol=1e-4, atol=1e-12)
        torch.testing.assert_close(
            grasp(found[name].weight, found[name].hessian_grad),
            found[name].weight * found[name].hessian_grad,
        )


def test_grasp_removes_what_lowers_the_gradient_least():
    """−2 w (H g) is the first-order change of ‖g‖² when w shrinks, by finite differences."""
    model, data = network(), batches(count=1)
    parameters = [model.get_submodule(name).weight for name in NAMES]
    score = grasp(*(getattr(prunus.calibrate(model, data, ("hessian_grad",))["3"], k)
                    for k in ("weight", "hessian_grad")))  # fmt: skip
    weight = parameters[1]

    def norm():
        return sum(
            float(g.square().sum()) for g in reference.gradient(parameters, model, data, 200.0)
        )

    for index in ((0, 0), (2, 3), (3, 1)):
        kept = weight.data[index].item()
        ends = []
        for factor in (1 + 1e-4, 1 - 1e-4):
            weight.data[index] = kept * factor
            ends.append(norm())
        weight.data[index] = kept
        slope = (ends[0] - ends[1]) / 2e-4  # d‖g‖²/dc for w c at c = 1
        assert slope == pytest.approx(2 * float(score[index]), rel=1e-3, abs=1e-14)


def test_synflow_sums_paths():
    model = network(widths=(3, 4, 3, 2))
    found = prunus.calibrate(model, torch.randn(4, 3, dtype=torch.float64), ("flow",))
    scores = [synflow(found[name].weight, found[name].flow) for name in NAMES]
    expected = reference.path_sums([model.get_submodule(n).weight.detach() for n in NAMES])
    for score, sums in zip(scores, expected, strict=True):
        torch.testing.assert_close(score, sums)
    totals = [float(score.sum()) for score in scores]
    assert totals == pytest.approx([totals[0]] * 3)  # conserved from layer to layer
    # neither the biases nor the sign of the data enter, and the model is as it was
    assert float(model.get_submodule("1").bias.detach().abs().min()) > 0


def test_synflow_removes_in_rounds_what_carries_least():
    """A hundred times the paths are summed anew over what is left, and the count falls."""
    model = network(widths=(3, 4, 3, 2))
    pruned = prunus.prune(model, "synflow", 0.5, data=torch.ones(2, 3, dtype=torch.float64))
    weights = [model.get_submodule(n).weight.detach() for n in NAMES]
    masks = [torch.ones_like(weight) for weight in weights]
    total = sum(weight.numel() for weight in weights)
    for i in range(1, 101):
        sums = reference.path_sums([w * m for w, m in zip(weights, masks, strict=True)])
        flat = torch.cat([s.masked_fill(m == 0, -1).flatten() for s, m in
                          zip(sums, masks, strict=True)])  # fmt: skip
        kept = torch.zeros(total)
        # no product is half a whole number, so any rounding to the nearest gives this count
        kept[flat.argsort(descending=True)[: round(0.5 ** (i / 100) * total)]] = 1
        masks = [m.reshape(w.shape) for m, w in zip(
            kept.split([w.numel() for w in weights]), weights, strict=True)]  # fmt: skip
    for name, mask in zip(NAMES, masks, strict=True):
        assert torch.equal(pruned.layers[name].mask, mask.bool())


def test_synflow_needs_real_inputs_and_finite_flow():
    model = network()
    with torch.no_grad():
        model.get_submodule("3").weight.mul_(1e308)
    with pytest.raises(ValueError, match=r"flow along the network's paths is inf"):
        prunus.calibrate(model, batches()[0], ("flow",))


@pytest.mark.filterwarnings("ignore:Pruning at initialisation")  # a tenth may lose an output
@pytest.mark.parametrize("recipe", ["random-init", "snip", "grasp", "synflow"])
@pytest.mark.parametrize("density", [0.5, 0.1])
def test_recipes_keep_exactly_the_count(recipe, density):
    model = network(widths=(5, 20, 16, 3), dtype=torch.float32)
    data = batches(dtype=torch.float32)
    pruned = prunus.prune(model, recipe, density, data=data)
    total = sum(r.mask.numel() for r in pruned.layers.values())
    kept = sum(int(r.mask.sum()) for r in pruned.layers.values())
    slack = 1.5 if recipe == "random-init" else 0.5  # rounded per layer, or once
    assert abs(kept - density * total) <= slack
    for name, result in pruned.layers.items():
        dense = model.get_submodule(name).weight
        torch.testing.assert_close(result.weight, dense.detach() * result.mask)


@pytest.mark.parametrize("base", ["random-init", "snip", "grasp", "synflow"])
def test_least_squares_keeps_the_masks_and_lowers_the_error(base):
    """Also over the rounds of SynFlow; errors are those of the dense network's layers."""
    model, data = network(widths=(5, 12, 8, 3)), batches()
    plain = prunus.prune(model, base, 0.5, data=data)
    fitted = prunus.prune(model, f"{base}+ls", 0.5, data=data)
    x = torch.cat([batch[0] for batch in data])
    for name in NAMES:
        assert torch.equal(plain.layers[name].mask, fitted.layers[name].mask)
        assert fitted.layers[name].error <= plain.layers[name].error * (1 + 1e-9) + 1e-12
        seen = model[: int(name)](x)
        change = seen @ (model.get_submodule(name).weight - plain.layers[name].weight).T
        measured = float(change.detach().square().sum(1).mean())
        assert plain.layers[name].error == pytest.approx(measured)


def test_random_masks_are_nested_over_densities():
    model = network(dtype=torch.float32)
    masks = [
        prunus.prune(model, "random-init", density, seed=4).layers for density in (0.3, 0.5, 0.8)
    ]
    for name in NAMES:
        assert bool((masks[0][name].mask <= masks[1][name].mask).all())
        assert bool((masks[1][name].mask <= masks[2][name].mask).all())


def test_snip_recipe_keeps_the_most_sensitive_of_all_layers():
    model, data = network(), batches()
    found = prunus.calibrate(model, data, ("grad",))
    scores = torch.cat([snip(found[n].weight, found[n].grad).flatten() for n in NAMES])
    best = set(scores.topk(20).indices.tolist())
    with pytest.warns(RuntimeWarning, match="1 of 3 outputs have no path"):
        pruned = prunus.prune(model, "snip", 20 / len(scores), data=data)
    mask = torch.cat([pruned.layers[n].mask.flatten() for n in NAMES])
    assert set(mask.nonzero()[:, 0].tolist()) == best


def test_synflow_in_rounds_keeps_a_path_where_one_round_of_magnitude_does_not():
    """One wide layer between narrow ones: few weights are left, yet a path remains."""
    model = network(widths=(5, 100, 100, 3), dtype=torch.float32)
    data = batches(dtype=torch.float32)
    density = 30 / (5 * 100 + 100 * 100 + 100 * 3)
    pruned = prunus.prune(model, "synflow", density, data=data)
    found = connection(model, _masks(pruned), data[0])
    assert not found.collapsed
    assert found.live == found.kept == 30
    with pytest.warns(RuntimeWarning, match="Pruning at initialisation"):
        lost = prunus.prune(model, "random-init", density, data=data)
    assert connection(model, _masks(lost), data[0]).collapsed


def _masks(pruned):
    return {f"{name}.weight": result.mask for name, result in pruned.layers.items()}


def test_disconnection_is_reported_before_training():
    model = network(dtype=torch.float32)
    trained = []
    with pytest.warns(RuntimeWarning, match="no path joins input and output") as caught:
        pruned = prunus.prune(
            model,
            "random-init",
            0.02,
            data=batches(dtype=torch.float32),
            train=lambda model, step: trained.append(len(caught.list)),
        )
    assert trained == [1]  # the warning came first
    assert any("no path joins" in note for note in pruned.notes)


def test_empty_layers_are_reported_without_data():
    with pytest.warns(RuntimeWarning, match="no weight is kept in 5"):
        prunus.prune(network(), "random-init", {"5": 0.01, "*": 0.9})


def test_connection_against_enumerated_paths():
    model = network(widths=(3, 4, 3, 2))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, dtype=torch.float64)
    for density in (0.9, 0.5, 0.3, 0.2):
        masks = {
            f"{name}.weight": torch.rand(
                model.get_submodule(name).weight.shape, generator=generator
            )
            < density
            for name in NAMES
        }
        found = connection(model, masks, x)
        paths = reference.path_sums([m.double() for m in masks.values()])
        assert found.live == sum(int((p > 0).sum()) for p in paths)
        assert found.kept == sum(int(m.sum()) for m in masks.values())
        dead = [j for j in range(2) if float(paths[-1][j].sum()) == 0]
        assert list(found.dead_outputs) == dead
        assert found.collapsed == (len(dead) == 2)


def test_connection_of_a_convolution_network():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)
    )
    masks = {n: torch.ones_like(p).bool() for n, p in model.named_parameters() if p.ndim > 1}
    x = torch.randn(2, 1, 8, 8)
    assert connection(model, masks, x).whole
    masks["4.weight"][0] = False
    assert connection(model, masks, x).dead_outputs == (0,)
    masks["0.weight"][:] = False
    found = connection(model, masks, x)
    assert found.collapsed
    assert "no weight is kept in 0" in found.summary()


def test_statistics_that_are_no_sums_do_not_merge():
    model, data = network(), batches()
    halves = [prunus.calibrate(model, data[:1], ("hessian_grad",)) for _ in range(2)]
    with pytest.raises(ValueError, match="'hessian_grad' is no sum over the data"):
        halves[0] + halves[1]


def test_statistics_on_the_first_samples_only():
    model, data = network(), batches()
    few = prunus.calibrate(model, data, ("hessian_grad", "flow"), max_samples=8)
    one = prunus.calibrate(model, data[:1], ("hessian_grad", "flow"))
    torch.testing.assert_close(few["3"].hessian_grad, one["3"].hessian_grad)
    torch.testing.assert_close(few["3"].flow, one["3"].flow)


def test_token_inputs_have_no_flow():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"needs real inputs, got torch\.int64"):
        prunus.calibrate(model, torch.randint(7, (3, 2)), ("flow",), layers="2")


def test_grasp_needs_logits():
    class Dictionary(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.fc(x)}

    with pytest.raises(ValueError, match=r"GraSP divides the logits by 200, but .* dict"):
        prunus.calibrate(
            Dictionary(),
            torch.randn(4, 3),
            ("hessian_grad",),
            loss=lambda output, batch: output["logits"].sum(),
        )


def test_one_shot_data_cannot_be_read_twice():
    with pytest.raises(ValueError, match="can be read only once"):
        prunus.calibrate(network(), iter(batches()), ("hessian_grad",))
    assert math.isfinite(
        float(prunus.calibrate(network(), iter(batches()), ("grad",))["1"].grad.sum())
    )

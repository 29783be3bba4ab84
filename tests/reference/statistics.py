"""Every statistic from its definition: sample by sample, output by output, weight by weight.

A `Raw` keeps what a statistic is defined on, so that a new one can be written down from it: the
model, its inputs and labels, and (by `inputs_of`, `outputs_of`) what each layer reads and gives.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.coupling import couple
from reference import moments


@dataclass(frozen=True, eq=False)
class Raw:
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor

    def module(self, name: str) -> Any:
        return self.model.get_submodule(name)

    def loss(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, y)

    def inputs_of(self, name: str) -> np.ndarray:
        """(vectors, groups, in): what the layer's matrix multiplies, position by position."""
        given, _ = self.called(name)
        module = self.module(name)
        if isinstance(module, nn.Linear):
            return given.reshape(-1, 1, given.shape[-1]).numpy()
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
        return moments.patches(given.numpy(), *sizes, module.groups)

    def outputs_of(self, name: str) -> torch.Tensor:
        """(vectors, out)."""
        _, out = self.called(name)
        rows = out if isinstance(self.module(name), nn.Linear) else out.movedim(1, -1)
        return rows.reshape(-1, rows.shape[-1])

    def called(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        seen = []
        hook = self.module(name).register_forward_hook(
            lambda m, args, out: seen.append((args[0].detach().clone(), out.detach().clone()))
        )
        with torch.no_grad():
            self.model(self.x)
        hook.remove()
        return seen[0]


def of_inputs(key):
    def found(raw, name):
        value = torch.tensor(moments.moments(raw.inputs_of(name))[key])
        return value if value.shape[0] > 1 else value[0]

    return found


def of_outputs(raw, name):
    return (raw.outputs_of(name) <= 0).double().mean(0)


def per_sample(raw, quantity, wanted):
    """Σ over samples of `quantity(output, y)`'s gradients: a list per sample of lists."""
    for i in range(len(raw.x)):
        output = raw.model(raw.x[i : i + 1])
        for value in quantity(output, raw.y[i : i + 1]):
            yield i, torch.autograd.grad(value, wanted, retain_graph=True)[0]


def outputs(output, y):
    return output.flatten()


def loss(output, y):
    return [nn.functional.cross_entropy(output, y)]


def matrix(values):
    return values.flatten(1)


def squared(quantity):
    def found(raw, name):
        weight = raw.module(name).weight
        total = sum(matrix(g).square() for _, g in per_sample(raw, quantity, weight))
        return total / len(raw.x)

    return found


def grad(raw, name):
    weight = raw.module(name).weight
    return matrix(torch.autograd.grad(raw.loss(raw.model(raw.x), raw.y), weight)[0])


def slope(raw, name):
    """A perturbation of the layer's outputs, of which every output is differentiated."""
    total = 0
    for i in range(len(raw.x)):
        moved = []

        def add(m, args, out, moved=moved):
            moved.append(torch.zeros_like(out, requires_grad=True))
            return out + moved[0]

        hook = raw.module(name).register_forward_hook(add)
        output = raw.model(raw.x[i : i + 1])
        hook.remove()
        for value in output.flatten():
            g = torch.autograd.grad(value, moved[0], retain_graph=True)[0]
            rows = g if isinstance(raw.module(name), nn.Linear) else g.movedim(1, -1)
            total = total + rows.reshape(-1, rows.shape[-1]).square().sum(0)
    return total / len(raw.x)


def curvature(raw, name):
    """The diagonal of the Hessian of the mean loss in one weight matrix: right for ReLU."""
    weight = raw.module(name).weight

    def of(values):
        state = {f"{name}.weight": values}
        return raw.loss(torch.func.functional_call(raw.model, state, (raw.x,)), raw.y)

    flat = torch.autograd.functional.hessian(of, weight.detach()).reshape(weight.numel(), -1)
    return flat.diagonal().reshape(weight.shape[0], -1)


def hessian_grad(raw, name):
    """(∇L(w + εg) − ∇L(w − εg)) / 2ε over all layers' weights at once, logits over 200."""
    weights = [m.weight for m in raw.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    def gradient():
        return torch.autograd.grad(raw.loss(raw.model(raw.x) / 200, raw.y), weights)

    g = gradient()
    step = 1e-4 / max(float(v.abs().max()) for v in g)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, v in zip(weights, g, strict=True):
                w += sign * step * v
        ends.append(gradient())
        with torch.no_grad():
            for w, v in zip(weights, g, strict=True):
                w -= sign * step * v
    place = next(i for i, w in enumerate(weights) if w is raw.module(name).weight)
    return matrix((ends[0][place] - ends[1][place]) / (2 * step))


def flow(raw, name):
    """∂R/∂|W| by raising one weight at a time; the flow is linear in each."""
    model = type(raw.model)().double()
    with torch.no_grad():
        for own, theirs in zip(model.parameters(), raw.model.parameters(), strict=True):
            own.copy_(theirs.abs() if theirs.ndim > 1 else torch.zeros_like(theirs))
        ones = torch.ones_like(raw.x[:1])
        base = model(ones).sum()
        weight = model.get_submodule(name).weight
        found = torch.zeros_like(weight)
        for place in range(weight.numel()):
            weight.view(-1)[place] += 1
            found.view(-1)[place] = model(ones).sum() - base
            weight.view(-1)[place] -= 1
    return matrix(found)


def share(raw, name):
    vectors, weight = raw.inputs_of(name), matrix(raw.module(name).weight.detach()).numpy()
    rows = len(weight) // vectors.shape[1]
    found = np.zeros_like(weight)
    for i, row in enumerate(weight):
        for x in vectors[:, i // rows]:
            for sign in (1, -1):
                for side in (1, -1):
                    terms = np.clip(sign * row, 0, None) * np.clip(side * x, 0, None)
                    if terms.sum() > 0:
                        found[i] = np.maximum(found[i], terms / terms.sum())
    return torch.tensor(found)


def gates(raw, group, quantity):
    """(passes, classes): derivatives along a gate on every class, where its consumers read it."""
    module_of = dict(raw.model.named_modules())
    rows = []
    for i in range(len(raw.x)):
        gate = torch.ones(group.size, dtype=torch.float64, requires_grad=True)
        hooks = []
        for consumer in group.consumers:
            module = module_of[consumer]
            places = [
                (member.index, unit)
                for unit, members in enumerate(group.classes)
                for member in members
                if member.role == "in" and member.parameter == f"{consumer}.weight"
            ]

            def close(m, args, places=places, gate=gate):
                x = args[0]
                linear = isinstance(m, nn.Linear)
                channels = x.shape[-1 if linear else 1]
                block = m.weight.shape[1]  # channels of one convolution group
                scale = torch.ones(channels, dtype=torch.float64)
                for index, unit in places:
                    for c in range(index, channels, channels if linear else block):
                        hot = torch.zeros(channels, dtype=torch.float64)
                        hot[c] = 1.0
                        scale = scale * (1 - hot) + hot * gate[unit]
                shape = [1] * x.ndim
                shape[-1 if linear else 1] = -1
                return (x * scale.view(shape),)

            hooks.append(module.register_forward_pre_hook(close))
        output = raw.model(raw.x[i : i + 1])
        for hook in hooks:
            hook.remove()
        values = quantity(output, raw.y[i : i + 1])
        rows += [torch.autograd.grad(v, gate, retain_graph=True)[0] for v in values]
    return torch.stack(rows)


def gate(raw, group):
    t = gates(raw, group, loss)
    return torch.stack([t.mean(0), t.abs().mean(0), t.square().mean(0)])


def gate_output(raw, group):
    return gates(raw, group, outputs).square().sum(0) / len(raw.x)


def gate_curvature(raw, group):
    """E (p-weighted variance of the outputs' slopes): tᵀ (diag p − p pᵀ) t."""
    t = gates(raw, group, outputs)
    with torch.no_grad():
        p = raw.model(raw.x).softmax(-1)
    t = t.view(*p.shape, -1)
    mean = (p[..., None] * t).sum(1, keepdim=True)
    return (p[..., None] * (t - mean).square()).sum(1).mean(0)


def taylor_gram(raw, group):
    t = gates(raw, group, outputs)
    return t.T @ t / len(raw.x)


def absolute(raw, name):
    value = torch.tensor(np.abs(raw.inputs_of(name)).mean(0))
    return value if value.shape[0] > 1 else value[0]


OF_LAYERS = {
    **{key: of_inputs(key) for key in ("gram", "mean", "diag", "max", "zeros")},
    "absolute": absolute,
    "output_zeros": of_outputs,
    "output_variance": lambda raw, name: raw.outputs_of(name).var(0, correction=0),
    "grad": grad,
    "sensitivity": squared(outputs),
    "fisher": squared(loss),
    "slope": slope,
    "curvature": curvature,
    "hessian_grad": hessian_grad,
    "flow": flow,
    "share": share,
}
OF_CLASSES = {
    "gate": gate,
    "gate_output": gate_output,
    "gate_curvature": gate_curvature,
    "taylor_gram": taylor_gram,
}
OF_PAIRS = {
    "cross": lambda dense, pruned, name: np.einsum("ngi,ngj->gij", dense, pruned) / len(dense),
    "dense_gram": lambda dense, pruned, name: np.einsum("ngi,ngj->gij", dense, dense) / len(dense),
    "dense_mean": lambda dense, pruned, name: dense.mean(0),
}


def groups_of(raw):
    return {group.name: group for group in couple(raw.model, raw.x[:2]).groups}

"""A `.pt2` file as a network whose layers are modules again, so that it can be pruned."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["read_pt2"]

aten = torch.ops.aten
# torch.export writes these two beside what the network computes.
CHECKS = ("_guards_fn",)


def read_pt2(path: str | os.PathLike[str]) -> nn.Module:
    """The network of a program that `torch.export.save` wrote, in evaluation mode.

    In such a program a layer is a call of a function with the weight as an argument. Linear layers,
    convolutions, norms and embeddings become modules again, under their old names and with the very
    parameters, so that the state has the keys it had; all else stays as it is. Weights that several
    calls share stay arguments.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or no program of torch.export.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        if not zipfile.is_zipfile(source):
            raise ValueError("it is no archive")
        program = torch.export.load(source)
        graph = program.module()
    except Exception as error:  # of many kinds, by what is damaged
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(
            f"{source} is no whole program of torch.export ({said}). Save one with "
            f"torch.export.save(torch.export.export(model, (example,)), path)."
        ) from None
    return _with_modules(graph)


def _with_modules(program: Any) -> nn.Module:
    model = fx.GraphModule(program, program.graph)
    uses: dict[str, int] = {}
    for node in model.graph.nodes:
        if node.op == "get_attr":
            uses[node.target] = uses.get(node.target, 0) + len(node.users)
    for node in list(model.graph.nodes):
        if node.op == "call_module" and node.target in CHECKS:
            model.graph.erase_node(node)
        elif node.op == "call_function" and node.target in LAYERS:
            _made_module(model, node, uses)
    _plain_call(model)
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.graph.lint()
    model.recompile()
    return model.eval()


def _plain_call(model: fx.GraphModule) -> None:
    """Take tensors and give one, where that is what the program does; nested ones stay nested."""
    graph = model.graph
    known: Any = getattr(graph._codegen, "pytree_info", None)
    if known is None or known.out_spec is None:
        return
    args, kwargs = _children(known.in_spec)
    leaves = all(spec.is_leaf() for spec in _children(args))
    if not leaves or kwargs.num_leaves or not known.out_spec.is_leaf():
        return
    graph.set_codegen(fx.graph.CodeGen())
    [out] = graph.find_nodes(op="output")
    out.args = (out.args[0][0],)
    for name in ("_in_spec", "_out_spec"):  # copying them warns, and nothing reads them now
        vars(model).pop(name, None)


def _children(spec: Any) -> list[Any]:
    """The parts of a nested structure; older torch keeps them as a field."""
    children = getattr(spec, "children", None)
    return list(children() if callable(children) else spec.children_specs)


def _made_module(model: fx.GraphModule, node: fx.Node, uses: dict[str, int]) -> None:
    """Put a module where a function is called with a module's own weights."""
    names, build = LAYERS[node.target]
    given = node.normalized_arguments(model, normalize_to_only_use_kwargs=True)
    if given is None:
        return
    values = dict(given.kwargs)
    held = {name: values[key] for key, name in names.items() if values.get(key) is not None}
    paths = {name: str(at.target) for name, at in held.items()
             if isinstance(at, fx.Node) and at.op == "get_attr"}  # fmt: skip
    owner = paths.get("weight", "").removesuffix(".weight")
    whole = len(paths) == len(held) and all(p == f"{owner}.{n}" for n, p in paths.items())
    if "weight" not in paths or not whole or any(uses[path] != 1 for path in paths.values()):
        return
    own = model.get_submodule(owner)
    if any(True for _ in own.children()):
        return
    tensors = {name: getattr(own, name) for name in paths}
    module = build(tensors["weight"], values)
    if module is None:
        return
    for name in ("weight", "bias"):
        if name in tensors:
            setattr(module, name, _parameter(tensors[name]))
        else:
            module.register_parameter(name, None)
    for name, value in own.named_buffers(recurse=False):
        if hasattr(module, name):
            module.register_buffer(name, value)
    model.set_submodule(owner, module.eval())
    with model.graph.inserting_after(node):
        call = model.graph.call_module(owner, (values[INPUT[node.target]],))
    node.replace_all_uses_with(call)
    call.meta = dict(node.meta)
    model.graph.erase_node(node)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)


def _linear(weight: Tensor, values: dict[str, Any]) -> nn.Module:
    del values
    return nn.Linear(weight.shape[1], weight.shape[0], device="meta")


def _conv(kind: Callable[..., nn.Module]) -> Callable[[Tensor, dict[str, Any]], nn.Module | None]:
    def build(weight: Tensor, values: dict[str, Any]) -> nn.Module | None:
        groups = values.get("groups", 1)
        padding = values.get("padding", 0)
        return kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_each(values.get("stride", 1)),
            padding=padding if isinstance(padding, str) else _each(padding),
            dilation=_each(values.get("dilation", 1)),
            groups=groups,
            device="meta",
        )

    return build


def _each(value: Any) -> Any:
    if isinstance(value, int):
        return value
    values = tuple(value)
    return values[0] if len(values) == 1 else values


def _batch_norm(weight: Tensor, values: dict[str, Any]) -> nn.Module | None:
    if values.get("training") or values.get("running_mean") is None:
        return None
    source = values["input"].meta.get("val")
    kinds: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d,
                             5: nn.BatchNorm3d}  # fmt: skip
    kind = kinds.get(-1 if source is None else source.ndim)
    if kind is None:
        return None
    made: nn.Module = kind(len(weight), eps=values["eps"], momentum=values["momentum"])
    return made


def _layer_norm(weight: Tensor, values: dict[str, Any]) -> nn.Module:
    return nn.LayerNorm(tuple(weight.shape), eps=values.get("eps", 1e-5), device="meta")


def _embedding(weight: Tensor, values: dict[str, Any]) -> nn.Module | None:
    if values.get("sparse") or values.get("scale_grad_by_freq"):
        return None
    count, width = weight.shape
    padding = values.get("padding_idx", -1)
    return nn.Embedding(count, width, padding_idx=None if padding == -1 else padding, device="meta")


_PLAIN = {"weight": "weight", "bias": "bias"}
_NORM = {**_PLAIN, "running_mean": "running_mean", "running_var": "running_var"}
# The function: which arguments are tensors of the module, and the module.
LAYERS: dict[Any, tuple[dict[str, str], Callable[[Tensor, dict[str, Any]], nn.Module | None]]] = {
    aten.linear.default: (_PLAIN, _linear),
    aten.conv1d.default: (_PLAIN, _conv(nn.Conv1d)),
    aten.conv1d.padding: (_PLAIN, _conv(nn.Conv1d)),
    aten.conv2d.default: (_PLAIN, _conv(nn.Conv2d)),
    aten.conv2d.padding: (_PLAIN, _conv(nn.Conv2d)),
    aten.conv3d.default: (_PLAIN, _conv(nn.Conv3d)),
    aten.conv3d.padding: (_PLAIN, _conv(nn.Conv3d)),
    aten.batch_norm.default: (_NORM, _batch_norm),
    aten.layer_norm.default: (_PLAIN, _layer_norm),
    aten.embedding.default: ({"weight": "weight"}, _embedding),
}
INPUT = {key: "indices" if key is aten.embedding.default else "input" for key in LAYERS}

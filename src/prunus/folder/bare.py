"""Models whose parameters have no memory, and the names of these in a checkpoint."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import drawing
from prunus.folder.checkpoint import Checkpoint
from prunus.surgery.rebuilt import Bare

__all__ = [
    "bare",
    "bare_model",
    "check_numbers",
    "dtype_of",
    "keys_of",
    "list_of_blocks",
    "put",
    "uncached",
]


LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # what counts blocks
LARGEST = 2**24  # a number of a configuration may be that large whatever the weights


def check_numbers(checkpoint: Checkpoint) -> None:
    """Refuse a configuration of sizes beyond the weights, before anything is built from it.

    Raises:
        ValueError: the field is named.
    """
    weights = sum(math.prod(stored.shape) for stored in checkpoint.tensors.values())
    for name, value in checkpoint.config.items():
        most = len(checkpoint.tensors) if name in LAYERS else max(weights, LARGEST)
        if isinstance(value, int) and value > most:
            raise ValueError(
                f"{checkpoint.folder / 'config.json'}: `{name}` is {value}, and the folder has "
                f"{weights} weights in {len(checkpoint.tensors)} tensors. Fetch it again."
            )


def bare_model(config: Any, dtype: torch.dtype) -> nn.Module:
    """A causal language model in evaluation mode, whose large parameters have no memory."""
    from transformers import AutoModelForCausalLM

    def build() -> nn.Module:  # its layers draw values, for parameters that have none
        automatic: Any = AutoModelForCausalLM
        with Bare():
            made: nn.Module = automatic.from_config(config, dtype=dtype)
        return made

    return drawing([torch.default_generator], build).eval()


def dtype_of(config: Any, checkpoint: Checkpoint) -> torch.dtype:
    """The type that the configuration names, else that of most weights."""
    named = getattr(config, "dtype", None)
    if isinstance(named, torch.dtype):
        return named
    sizes: dict[torch.dtype, int] = {}
    for stored in checkpoint.tensors.values():
        if stored.dtype.is_floating_point:
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.bytes
    return max(sizes, key=lambda d: sizes[d]) if sizes else torch.float32


def uncached(model: nn.Module) -> None:
    """Let no configuration of the model ask for a cache of keys and values."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False


def list_of_blocks(model: nn.Module, config: Any) -> tuple[str, int]:
    """The one list of modules that is as long as the configuration says there are layers."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    depth = int(getattr(text, "num_hidden_layers", None) or 0)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and depth
    ]
    outer = [n for n in found if not any(n.startswith(f"{m}.") for m in found if m != n)]
    if len(outer) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(outer)} lists of {depth} blocks"
            f"{': ' + ', '.join(outer) if outer else ''}; one is needed to go block by block. Use "
            f"prunus.prune on the loaded model."
        )
    return outer[0], depth


def keys_of(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """{parameter: name in the checkpoint}; heads that are tied to the embedding have none."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    found: dict[str, str] = {}
    named = [n for n, _ in model.named_parameters()]
    named += [n for n, _ in model.named_buffers() if n in model.state_dict()]
    for name in named:
        bare = name.removeprefix(f"{prefix}.")
        for key in (name, bare, f"{prefix}.{name}"):
            if key in checkpoint.tensors:
                found[name] = key
                break
        else:
            if name in tied or name == "lm_head.weight":
                continue
            raise ValueError(
                f"{checkpoint.folder} has no tensor for the parameter {name!r} of "
                f"{type(model).__name__}; transformers may make it of others when it loads. Load "
                f"the model and save it again, or use prunus.prune on the loaded model."
            )
        expected = tuple(model.state_dict()[name].shape)
        if checkpoint.tensors[found[name]].shape != expected:
            raise ValueError(
                f"{checkpoint.folder}: tensor {found[name]!r} has shape "
                f"{checkpoint.tensors[found[name]].shape}, the configuration asks for {expected}."
            )
    return found


def bare(parameter: Tensor) -> nn.Parameter:
    """A parameter like this one, without memory."""
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


def put(model: nn.Module, name: str, value: Tensor | None) -> None:
    """Give a parameter (or buffer) a value; None takes its memory away."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._buffers:
        if value is not None:
            module._buffers[leaf] = value
        return
    old = module._parameters[leaf]
    assert old is not None
    module._parameters[leaf] = (
        bare(old) if value is None else nn.Parameter(value, requires_grad=False)
    )

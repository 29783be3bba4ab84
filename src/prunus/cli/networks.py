"""The network that a command names: a function, a saved folder, a Hugging Face model, a file."""

from pathlib import Path
from typing import Any

from prunus.cli.imports import named_function
from prunus.report.figure import require

__all__ = ["HUB", "hub_folder", "load_weights", "network"]

HUB = "hf:"


def network(
    model: str, factory: str | None = None, weights: Path | None = None, *, name: str = "MODEL"
) -> Any:
    """The network in evaluation mode.

    Args:
        model: as the argument MODEL says.
        factory: builds the network of a saved folder.
        weights: a file of weights to load.
        name: of the argument.

    Raises:
        ValueError: there is no such thing, or it gives no network.
    """
    from torch import nn

    found = _found(model, factory, name)
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"{name}: {model} returned {type(found).__name__}, a torch.nn.Module is needed."
        )
    if weights is not None:
        load_weights(found, weights)
    return found.eval()


def _found(model: str, factory: str | None, name: str) -> Any:
    if factory is not None and not Path(model).is_dir():
        raise ValueError(
            f"--factory builds the network of a saved folder, and {name} {model} is none. Leave "
            f"it out."
        )
    if model.startswith(HUB):
        return _from_hub(hub_folder(model))
    if model.endswith(".pt2"):
        from prunus.export import read_pt2

        return read_pt2(model)
    if ":" in model:
        return named_function(name, model)()
    if model and Path(model).is_dir():
        if factory is None:
            raise ValueError(
                f"{model} holds weights and no code. Give --factory package.module:factory, the "
                f"function that builds the network."
            )
        from prunus.result import load

        return load(model, named_function("--factory", factory)).model
    if model.endswith(".py"):
        raise ValueError(
            f"{name} must name the function that builds the network, as "
            f"{Path(model).stem}:function, got {model!r}."
        )
    raise ValueError(
        f"{name} must be package.module:factory or a folder that `prunus prune` wrote, hf:NAME or "
        f"a .pt2 file, got {model!r}."
    )


def load_weights(model: Any, weights: Path, option: str = "--weights") -> None:
    """Put the weights of a file into a model; nothing in the file is executed.

    Args:
        model: takes them.
        weights: the file.
        option: that named it.

    Raises:
        ValueError: the file is damaged, is of another kind, or does not fit.
    """
    if not weights.is_file():
        raise ValueError(f"{option}: there is no file {weights}.")
    of_torch = weights.suffix in (".pt", ".pth", ".bin")
    state = _torch_state(weights, option) if of_torch else _state(weights, option)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        wrapper = _wrapper(state, model)
        if wrapper is not None:
            reason = (
                f"its names are the network's behind {wrapper!r}, as those of a wrapper are "
                f"(DataParallel, Lightning). Save the state_dict of the network inside."
            )
        raise ValueError(f"{option}: {weights} does not fit the network: {reason}") from None


def _wrapper(state: dict[str, Any], model: Any) -> str | None:
    """What stands before the network's own names in all names of a state, or None."""
    own = min(model.state_dict(), default="")
    first = min(state, default="")
    before = first.removesuffix(own)
    alike = {before + name for name in model.state_dict()} == set(state)
    return before if own and before not in ("", first) and alike else None


def _state(weights: Path, option: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Any] = load_file(weights)
    except SafetensorError as error:
        raise ValueError(
            f"{option}: {weights} is no whole safetensors file ({error}). Save it with "
            f"safetensors.torch.save_file(model.state_dict(), path)."
        ) from None
    return found


# What torch says of a file that is damaged, or whose pickle names other things than tensors.
UNREADABLE = (
    ValueError, TypeError, LookupError, EOFError, OSError, RuntimeError, AttributeError,
    AssertionError, MemoryError,
)  # fmt: skip


def _torch_state(weights: Path, option: str) -> dict[str, Any]:
    import pickle

    import torch

    try:
        found = torch.load(weights, map_location="cpu", weights_only=True)
    except (*UNREADABLE, pickle.UnpicklingError) as error:
        said = " ".join(str(error).split(". ")[0].split())[:160] or type(error).__name__
        raise ValueError(
            f"{option}: {weights} is no file of tensors alone ({said.rstrip('.')}). Save the "
            f"weights, not the network: torch.save(model.state_dict(), path)."
        ) from None
    inner = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(inner, dict) or not all(isinstance(v, torch.Tensor) for v in inner.values()):
        raise ValueError(
            f"{option}: {weights} holds no state_dict. Save it with "
            f"torch.save(model.state_dict(), path)."
        )
    return dict(inner)


def hub_folder(model: str) -> Path:
    """The folder of `hf:NAME`: NAME itself, or what the Hub's own client has or fetches.

    Raises:
        ValueError: neither.
        ImportError: the extra `hf` is not installed.
    """
    name = model.removeprefix(HUB)
    if name and Path(name).is_dir():
        return Path(name)
    if not name or name.startswith((".", "/")) or name.count("/") > 1:
        raise ValueError(f"MODEL: there is no folder {name!r}.")
    client = require("huggingface_hub", "hf")
    try:
        return Path(client.snapshot_download(name))
    except Exception as error:  # the client's own, of many kinds: no network, no such name, …
        first = str(error).strip().partition("\n")[0].removeprefix("Got: ").rstrip(".")
        said = first[:160] or type(error).__name__
        raise ValueError(
            f"MODEL: {name} is no folder here, and the Hugging Face Hub did not give it ({said}). "
            f"Name a folder that `save_pretrained` wrote, or look at the name and the network."
        ) from None


def _from_hub(folder: Path) -> Any:
    """The model that a folder's configuration names, by plain transformers; no foreign code."""
    transformers = require("transformers", "hf")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"MODEL: {folder} has no config.json, so that it is no folder that `save_pretrained` "
            f"wrote."
        )
    quiet: Any = transformers.utils.logging.disable_progress_bar
    quiet()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        named = (config.architectures or ["AutoModel"])[0]
        kind = getattr(transformers, named, None)
        if kind is None:
            raise ValueError(f"its architecture {named!r} is not one of transformers")
        return kind.from_pretrained(folder)
    except (ValueError, OSError, RuntimeError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"MODEL: transformers cannot load {folder} ({said}).") from None

"""A model of which no weight is there: blocks are filled from files one at a time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.calibration.batches import UNFIT
from prunus.check import brief
from prunus.folder.checkpoint import Checkpoint
from prunus.weights import Weight, weights_of

__all__ = ["BlockNet", "Call", "Skeleton", "bare_model"]

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # what counts blocks
LARGEST = 2**24  # a number of a configuration may be that large whatever the weights
Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with beside its stream


class _Bare(TorchFunctionMode):
    """Uninitialised tensors, as modules make them for their parameters, get no memory."""

    EMPTY = frozenset((torch.empty, torch.empty_like, torch.empty_strided))

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        own = {**(kwargs or {}), "device": "meta"} if function in self.EMPTY else kwargs or {}
        return function(*args, **own)


class _Reached(BaseException):
    """The last block was called: what follows is not wanted."""


class _StandIn(nn.Module):
    """Takes a block's place, notes what it is called with, and gives the stream on as it came."""

    def __init__(self, block: nn.Module, tour: "_Tour") -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # no child: its parameters are not ours
        object.__setattr__(self, "_tour", tour)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)  # models read the kind of their layers

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_tour"].visit(hidden, args, kwargs)


class _Tour:
    """One run of a model whose blocks are stand-ins."""

    def __init__(self, blocks: int, *, tuples: bool) -> None:
        self.calls: list[Call] = []
        self.first: Tensor | None = None
        self.straight = True
        self._last: Tensor | None = None
        self._blocks, self._tuples = blocks, tuples

    def visit(self, hidden: Tensor, args: Any, kwargs: Any) -> Any:
        """One block's call."""
        if self.first is None:
            self.first = hidden
        elif hidden is not self._last:
            self.straight = False
            raise _Reached
        self._last = hidden
        self.calls.append((args, dict(kwargs)))
        if len(self.calls) == self._blocks:
            raise _Reached
        return (hidden,) if self._tuples else hidden


class BlockNet(nn.Module):
    """One block as a network of its own, its parts under the names that they have in the model.

    Its input is the stream: a tensor (batch, positions, width), and an `attention_mask` where
    there is padding. What else the block is called with, the model's own code says.
    """

    def __init__(self, skeleton: "Skeleton", index: int, block: nn.Module) -> None:
        super().__init__()
        self.index = index
        holder: nn.Module = self
        *path, last = skeleton.block_name(index).split(".")
        for part in path:
            inner = nn.Module()
            holder.add_module(part, inner)
            holder = inner
        holder.add_module(last, block)
        object.__setattr__(self, "_skeleton", skeleton)

    @property
    def block(self) -> nn.Module:
        """The block."""
        skeleton: Skeleton = self.__dict__["_skeleton"]
        return self.get_submodule(skeleton.block_name(self.index))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The stream behind the block."""
        skeleton: Skeleton = self.__dict__["_skeleton"]
        batch, positions = hidden_states.shape[:2]
        args, kwargs = skeleton.calls(batch, positions, attention_mask)[self.index]
        place = hidden_states.device
        args, kwargs = _moved(args, place), _moved(kwargs, place)
        answer = self.block(hidden_states, *args, **kwargs)
        stream: Tensor = answer[0] if isinstance(answer, tuple | list) else answer
        return stream

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockNet":
        import copy

        skeleton: Skeleton = self.__dict__["_skeleton"]
        made = BlockNet(skeleton, self.index, copy.deepcopy(self.block, memo))
        return made.train(self.training)


def _check_numbers(checkpoint: Checkpoint) -> None:
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


class Skeleton:
    """A causal language model from its configuration, all of whose parameters lack memory.

    Attributes:
        checkpoint: where the weights lie.
        model: on the meta device, buffers excepted.
        home: name of the list of blocks.
        blocks: how many there are.
        dtype: of the weights when it runs.
        keys: {parameter: name in the checkpoint}.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Build it.

        Raises:
            ValueError: the configuration is none of transformers' causal language models, it has
                no single list of blocks, or tensors are missing.
        """
        from transformers import AutoConfig

        self.checkpoint = checkpoint
        _check_numbers(checkpoint)
        try:
            config = AutoConfig.from_pretrained(checkpoint.folder)
            self.dtype = _dtype(config, checkpoint)
            model = bare_model(config, self.dtype)
        except Exception as error:  # whatever its code makes of a configuration that is damaged
            said = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ValueError(
                f"transformers builds no causal language model from {checkpoint.folder}: "
                f"{brief(said, 300)}"
            ) from None
        self.model = model
        self.use_cache = getattr(config, "use_cache", None)
        _uncached(self.model)
        self.home, self.blocks = _list_of_blocks(self.model, config)
        self.keys = _keys(self.model, checkpoint)
        for module in self.model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and not parameter.is_meta:
                    module._parameters[key] = _bare(parameter)
        self._tuples = False
        self._known: dict[tuple[int, int], list[Call]] = {}

    def block_name(self, index: int) -> str:
        """The name of a block."""
        return f"{self.home}.{index}"

    def parameters(self, index: int) -> dict[str, str]:
        """{parameter: name in the checkpoint} of one block."""
        start = self.block_name(index) + "."
        return {name: key for name, key in self.keys.items() if name.startswith(start)}

    @property
    def rest(self) -> list[str]:
        """Names in the checkpoint of what lies in no block."""
        start = self.home + "."
        inside = {key for name, key in self.keys.items() if name.startswith(start)}
        return [key for key in self.checkpoint.tensors if key not in inside]

    def shared_inputs(self, index: int) -> list[tuple[str, ...]]:
        """The layers of a block in order of execution, those together that take one tensor.

        Shapes alone are followed. Where a block looks at numbers, each layer is by itself.
        """
        name = self.block_name(index)
        block = self.model.get_submodule(name)
        weights = {
            n: w for n, w in weights_of(self.model).items() if w.owner.startswith(f"{name}.")
        }
        taken: dict[str, Tensor] = {}

        def take(layer: str, weight: Weight) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                found = weight.inputs(args, kwargs)
                if found is not None:
                    taken.setdefault(layer, found)

            return hook

        hooks = [
            w.module.register_forward_pre_hook(take(n, w), with_kwargs=True)
            for n, w in weights.items()
        ]
        meta = torch.device("meta")
        args, kwargs = (_moved(tree, meta) for tree in self.calls(1, 2)[index])
        try:
            with torch.no_grad():
                block(self.calls_stream(1, 2).to(meta), *args, **kwargs)
        except UNFIT:
            return [(layer,) for layer in weights]
        finally:
            for hook in hooks:
                hook.remove()
        found: dict[int, list[str]] = {}
        for layer, tensor in taken.items():
            found.setdefault(id(tensor), []).append(layer)
        return [tuple(group) for group in found.values()] or [(layer,) for layer in weights]

    @contextmanager
    def filled(self, index: int, device: torch.device) -> Iterator[BlockNet]:
        """A block with its weights, copied from the files; they go at the end."""
        name = self.block_name(index)
        block = self.model.get_submodule(name)
        own = self.parameters(index)
        read = dict(zip(own.values(), own, strict=True))
        try:
            for key, tensor in self.checkpoint.read(own.values()):
                value = tensor.to(device, self.dtype if tensor.is_floating_point() else None)
                value = value.clone() if value.data_ptr() == tensor.data_ptr() else value
                _put(self.model, read[key], value)
            yield BlockNet(self, index, block.to(device)).eval()
        finally:
            for parameter in own:
                _put(self.model, parameter, None)

    def embedded(
        self, ids: Int64[Tensor, "batch positions"], mask: Tensor | None, device: torch.device
    ) -> Tensor:
        """The stream that goes into the first block."""
        outside = {n: k for n, k in self.keys.items() if not n.startswith(self.home + ".")}
        read = dict(zip(outside.values(), outside, strict=True))
        try:
            for key, tensor in self.checkpoint.read(outside.values()):
                same = tensor.dtype == self.dtype or not tensor.is_floating_point()
                value = tensor if same else tensor.to(self.dtype)
                _put(self.model, read[key], value)  # a map of the file: rows are read, not all
            found = self._tour(ids, mask).first
        finally:
            for parameter in outside:
                _put(self.model, parameter, None)
        assert found is not None  # a tour ends at a block
        return found.detach().to(device, copy=True)

    def calls(self, batch: int, positions: int, mask: Tensor | None = None) -> list[Call]:
        """What each block is called with beside its stream, as the model's own code says.

        Nothing but the shape and the padding decides it, so no weight is read.
        """
        if mask is not None:
            return self._blank_tour(batch, positions, mask).calls
        if (batch, positions) not in self._known:
            self._known[batch, positions] = self._blank_tour(batch, positions, None).calls
        return self._known[batch, positions]

    def calls_stream(self, batch: int, positions: int) -> Tensor:
        """A stream of zeros, of the width and type that blocks take."""
        found = self._blank_tour(batch, positions, None).first
        assert found is not None
        return torch.zeros(found.shape, dtype=found.dtype)

    def _blank_tour(self, batch: int, positions: int, mask: Tensor | None) -> _Tour:
        outside = [n for n in self.keys if not n.startswith(self.home + ".")]
        try:
            for name in outside:  # one number, seen everywhere: no memory
                like = self.model.get_parameter(name)
                _put(self.model, name, torch.zeros((), dtype=like.dtype).expand(like.shape))
            return self._tour(torch.zeros(batch, positions, dtype=torch.int64), mask)
        finally:
            for name in outside:
                _put(self.model, name, None)

    def _tour(self, ids: Tensor, mask: Tensor | None) -> _Tour:
        tour = self._toured(ids, mask, tuples=self._tuples)
        if not tour.straight and not self._tuples:  # older code takes the first of a tuple
            again = self._toured(ids, mask, tuples=True)
            self._tuples, tour = again.straight, again
        if not tour.straight or len(tour.calls) != self.blocks:
            raise ValueError(
                f"{type(self.model).__name__} does something with its stream between the blocks of "
                f"{self.home}, which pruning block by block would miss. Use "
                f"prunus.prune(model, …, blocks='{self.home}.*')."
            )
        return tour

    def _toured(self, ids: Tensor, mask: Tensor | None, *, tuples: bool) -> _Tour:
        tour = _Tour(self.blocks, tuples=tuples)
        blocks: Any = self.model.get_submodule(self.home)
        own = list(blocks)
        given = {} if mask is None else {"attention_mask": mask.cpu()}
        try:
            for i, block in enumerate(own):
                blocks._modules[str(i)] = _StandIn(block, tour)
            with torch.no_grad():
                self.model(input_ids=ids.cpu(), **given)
        except _Reached:
            pass
        except UNFIT as error:
            if not tour.calls:
                said = str(error).strip().splitlines() or [repr(error)]
                raise ValueError(f"The model could not run on the data: {said[0]}.") from error
            tour.straight = False
        finally:
            for i, block in enumerate(own):
                blocks._modules[str(i)] = block
        return tour


def bare_model(config: Any, dtype: torch.dtype) -> nn.Module:
    """A causal language model in evaluation mode, whose large parameters have no memory."""
    from transformers import AutoModelForCausalLM

    build: Any = AutoModelForCausalLM
    with _Bare(), torch.random.fork_rng(devices=[]):
        model: nn.Module = build.from_config(config, dtype=dtype)
    return model.eval()


def _dtype(config: Any, checkpoint: Checkpoint) -> torch.dtype:
    """The type that the configuration names, else that of most weights."""
    named = getattr(config, "dtype", None)
    if isinstance(named, torch.dtype):
        return named
    sizes: dict[torch.dtype, int] = {}
    for stored in checkpoint.tensors.values():
        if stored.dtype.is_floating_point:
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.bytes
    return max(sizes, key=lambda d: sizes[d]) if sizes else torch.float32


def _uncached(model: nn.Module) -> None:
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False


def _list_of_blocks(model: nn.Module, config: Any) -> tuple[str, int]:
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


def _keys(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
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


def _bare(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


def _put(model: nn.Module, name: str, value: Tensor | None) -> None:
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
        _bare(old) if value is None else nn.Parameter(value, requires_grad=False)
    )


def _moved(tree: Any, device: torch.device) -> Any:
    from torch.utils._pytree import tree_map_only

    return tree_map_only(Tensor, lambda t: t.to(device), tree)

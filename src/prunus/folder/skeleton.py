"""A model of which no weight is there: blocks are filled from files one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prunus.calibration.batches import UNFIT
from prunus.check import brief
from prunus.folder.bare import (
    bare,
    bare_model,
    check_numbers,
    dtype_of,
    keys_of,
    list_of_blocks,
    put,
    uncached,
)
from prunus.folder.block_net import BlockNet, moved
from prunus.folder.checkpoint import Checkpoint
from prunus.folder.stand_ins import Call, Reached, StandIn, Tour
from prunus.noise import passed
from prunus.weights import Weight, weights_of

__all__ = ["Skeleton"]


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
        check_numbers(checkpoint)
        try:
            config = AutoConfig.from_pretrained(checkpoint.folder)
            self.dtype = dtype_of(config, checkpoint)
            model = bare_model(config, self.dtype)
        except Exception as error:  # whatever its code makes of a configuration that is damaged
            said = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ValueError(
                f"transformers builds no causal language model from {checkpoint.folder}: "
                f"{brief(said, 300)}"
            ) from None
        self.model = model
        self.use_cache = getattr(config, "use_cache", None)
        uncached(self.model)
        self.home, self.blocks = list_of_blocks(self.model, config)
        self.keys = keys_of(self.model, checkpoint)
        for module in self.model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and not parameter.is_meta:
                    module._parameters[key] = bare(parameter)
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
        args, kwargs = (moved(tree, meta) for tree in self.calls(1, 2)[index])
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
                put(self.model, read[key], value)
            yield BlockNet(self, index, block.to(device)).eval()
        finally:
            for parameter in own:
                put(self.model, parameter, None)

    def embedded(
        self, ids: Int64[Tensor, "batch positions"], mask: Tensor | None, device: torch.device
    ) -> Tensor:
        """The stream that goes into the first block."""
        with self._rest_filled():
            found = self._tour(ids, mask).first
        assert found is not None  # a tour ends at a block
        return found.detach().to(device, copy=True)

    def logits(
        self, hidden: Float[Tensor, "batch positions width"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch positions vocabulary"]:
        """What the model answers where this is the stream behind its last block."""
        nothing = torch.zeros(hidden.shape[:2], dtype=torch.int64)
        with self._rest_filled():
            tour = self._toured(nothing, mask, tuples=self._tuples, behind=hidden.cpu())
        found: Tensor | None = getattr(tour.answer, "logits", None)
        if found is None:
            raise ValueError(f"{type(self.model).__name__} gives no logits.")
        return found

    @contextmanager
    def _rest_filled(self) -> Iterator[None]:
        """What lies in no block has its values: maps of the files, of which rows are read."""
        outside = {n: k for n, k in self.keys.items() if not n.startswith(self.home + ".")}
        read = dict(zip(outside.values(), outside, strict=True))
        model: Any = self.model
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
        tied = head is not None and not any(model.get_parameter(n) is head.weight for n in outside)
        try:
            for key, tensor in self.checkpoint.read(outside.values()):
                same = tensor.dtype == self.dtype or not tensor.is_floating_point()
                put(self.model, read[key], tensor if same else tensor.to(self.dtype))
            if tied:  # the files have the table alone
                head.weight = table.weight
            yield
        finally:
            if tied:
                head.weight = bare(head.weight)
            for parameter in outside:
                put(self.model, parameter, None)

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

    def _blank_tour(self, batch: int, positions: int, mask: Tensor | None) -> Tour:
        outside = [n for n in self.keys if not n.startswith(self.home + ".")]
        try:
            for name in outside:  # one number, seen everywhere: no memory
                like = self.model.get_parameter(name)
                put(self.model, name, torch.zeros((), dtype=like.dtype).expand(like.shape))
            return self._tour(torch.zeros(batch, positions, dtype=torch.int64), mask)
        finally:
            for name in outside:
                put(self.model, name, None)

    def _tour(self, ids: Tensor, mask: Tensor | None) -> Tour:
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

    def _toured(
        self, ids: Tensor, mask: Tensor | None, *, tuples: bool, behind: Tensor | None = None
    ) -> Tour:
        tour = Tour(self.blocks, tuples=tuples, behind=behind)
        blocks: Any = self.model.get_submodule(self.home)
        own = list(blocks)
        given = {} if mask is None else {"attention_mask": mask.cpu()}
        try:
            for i, block in enumerate(own):
                blocks._modules[str(i)] = StandIn(block, tour)
            with torch.no_grad():
                run = partial(self.model, input_ids=ids.cpu(), **given)
                tour.answer = passed(self.model, run, whole=False)
        except Reached:
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

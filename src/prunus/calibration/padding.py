"""Which positions of a batch are padding, for every stream of it that layers may read.

A model with an encoder and a decoder reads two sequences, each with a mask of its own. Masks are
found among the model's inputs by the names in use:

- Hugging Face: `attention_mask` and `decoder_attention_mask`, 1 for a real position, or added to
  the scores (0 for real, very negative for padding); (batch, positions), or (batch, queries, keys)
  with or without a heads axis, of which a key that no query sees is padding;
- torch: `src_key_padding_mask`, `tgt_key_padding_mask`, `memory_key_padding_mask` and
  `key_padding_mask`, of the opposite meaning: True for padding.

A mask belongs to the layers that read its stream. Where there are two, the model runs twice on one
sample, the second time with a second stream that is a position shorter: a layer whose input shrank
reads that stream. So it does where there is one mask beside inputs that it does not mask, as of
a text with an image: what is not shortened with the text has no padding. Where this cannot be done,
a mask goes by its length.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.calibration.batches import first_of, size_of
from prunus.inputs import arguments
from prunus.modes import evaluating
from prunus.views import Unclear
from prunus.weights import Weight, weights_of

__all__ = ["Padding", "padding_of", "streams_of"]

FIRST, SECOND, BOTH, NEITHER = 0, 1, 2, 3
# Arguments that hold a mask: the stream it belongs to, and whether it marks the padding.
MASKS: dict[str, tuple[int, bool]] = {
    "attention_mask": (FIRST, False),
    "encoder_attention_mask": (FIRST, False),
    "decoder_attention_mask": (SECOND, False),
    "src_key_padding_mask": (FIRST, True),
    "memory_key_padding_mask": (FIRST, True),
    "key_padding_mask": (FIRST, True),
    "tgt_key_padding_mask": (SECOND, True),
}
# Arguments that make the second stream or go along with it, and the axes that count its positions.
FOLLOWING: dict[str, tuple[int, ...]] = {
    "decoder_input_ids": (1,),
    "decoder_inputs_embeds": (1,),
    "tgt": (1,),
    "labels": (1,),
    "decoder_attention_mask": (1,),
    "tgt_mask": (0, 1),
    "tgt_key_padding_mask": (1,),
    "memory_mask": (0,),
}
HIDDEN = -1e3  # an added mask is below this at padding


@dataclass(frozen=True, eq=False)
class Padding:
    """The real positions of a batch.

    Attributes:
        masks: {stream: Bool[batch, positions]}, True for a real position; None for a stream all
            of whose positions are real.
        lengths: {stream: positions} of the streams without a mask, where known.
        streams: {layer: stream} as a run of the model showed; empty where it could not.
    """

    masks: Mapping[int, Tensor | None]
    lengths: Mapping[int, int] = field(default_factory=dict)
    streams: Mapping[str, int] = field(default_factory=dict)

    def real(self, layer: str, channels: Callable[[], Tensor]) -> Tensor | None:
        """Input vectors less those at padding, or None where the layer's inputs have no padding.

        One vector per sequence passes as it is, and so do inputs that hold no padding any more.

        Args:
            layer: its name.
            channels: gives the layer's inputs with positions before channels.

        Raises:
            Unclear: no mask has the length of the layer's input, or two masks have.
        """
        stream = self.streams.get(layer, BOTH)
        if stream != BOTH and self.masks.get(stream) is None:
            return None
        rows = channels()
        lead = tuple(rows.shape[:-1])
        open_to = {s: m for s, m in self.masks.items() if stream in (s, BOTH)}
        masks = [mask for mask in open_to.values() if mask is not None]
        fitting = [mask for mask in masks if _fits(mask, lead)]
        batch = masks[0].shape[0]
        whole = [self.lengths.get(s) for s, mask in open_to.items() if mask is None]
        also = any(n is not None and lead in ((batch, n), (batch * n,)) for n in whole)
        if fitting and (also or not _alike(fitting)):
            raise Unclear(
                f"Layer {layer!r} may read either of two equally long streams of the batch, and "
                f"their padding differs. Exclude the layer, or give streams of different lengths."
            )
        if fitting:
            return _chosen(rows, fitting[0])
        unpadded = any(lead == (int(mask.sum()),) for mask in masks)  # as a packed sequence is
        if lead == (batch,) or unpadded or also or None in whole:
            return rows
        raise Unclear(
            f"Layer {layer!r} sees inputs of shape {tuple(rows.shape)}, in which an "
            f"`attention_mask` of shape {tuple(masks[0].shape)} does not say what is padding. "
            f"Exclude the layer, or leave the mask out of the batch."
        )

    def of_output(self, output: Tensor) -> Bool[Tensor, "batch positions"] | None:
        """The mask of a model's output (batch, positions, …), or None where none applies."""
        mask = self.masks.get(SECOND if SECOND in self.masks else FIRST)
        fits = mask is not None and output.ndim > 1 and output.shape[:2] == mask.shape
        return mask if fits else None


def _fits(mask: Tensor, lead: tuple[int, ...]) -> bool:
    return lead in (tuple(mask.shape), (mask.numel(),), tuple(mask.T.shape))


def _alike(masks: list[Tensor]) -> bool:
    return all(torch.equal(mask, masks[0]) for mask in masks)


def _chosen(rows: Tensor, mask: Tensor) -> Tensor:
    if rows.ndim == 2:
        return rows[mask.flatten()]
    return rows[mask if rows.shape[:2] == mask.shape else mask.T]


def padding_of(batch: Any, streams: Mapping[str, int] | None = None) -> Padding | None:
    """The padding of a batch, or None where nothing is padded.

    Args:
        batch: on the model's device.
        streams: of every layer, as `streams_of` has found them.

    Raises:
        ValueError: a mask has no shape that tells positions, or hides everything.
    """
    _, kwargs = arguments(batch)
    masks: dict[int, Tensor | None] = {}
    samples: int | None = None
    for name, (stream, marks_padding) in MASKS.items():
        given = kwargs.get(name)
        if isinstance(given, Tensor):
            samples = samples or size_of(batch)
            if not marks_padding and _over_positions(given, samples):
                continue
            found = _real(name, given, marks_padding)
            masks[stream] = masks.get(stream)
            if masks[stream] is None and not bool(found.all()):
                masks[stream] = found
    if all(mask is None for mask in masks.values()):
        return None
    length = _second_length(kwargs)
    if not streams and length is None and SECOND not in masks:
        return Padding(masks)
    for stream in (FIRST, SECOND):
        masks.setdefault(stream, None)
    return Padding(masks, {} if length is None else {SECOND: length}, streams or {})


def _over_positions(mask: Tensor, samples: int | None) -> bool:
    """Whether a mask says which position sees which, the same for all samples."""
    if mask.shape[0] == samples or mask.ndim < 2:
        return False
    return mask.ndim > 2 or mask.shape[0] == mask.shape[1]


def _second_length(kwargs: Mapping[str, Any]) -> int | None:
    """Positions of the second stream, or None where nothing of the batch says so."""
    for name in ("decoder_input_ids", "decoder_inputs_embeds", "tgt"):
        given = kwargs.get(name)
        if isinstance(given, Tensor) and given.ndim >= 2:
            return int(given.shape[1])
    return None


def _real(name: str, mask: Tensor, marks_padding: bool) -> Tensor:
    """A mask as Bool[batch, positions], True where a position is real."""
    if mask.ndim not in (2, 3, 4):
        raise ValueError(
            f"`{name}` must be (batch, positions), got shape {tuple(mask.shape)}. Leave other "
            f"masks to the model's own arguments."
        )
    added = mask.is_floating_point() and (mask.ndim > 2 or marks_padding or bool((mask < 0).any()))
    seen = mask > HIDDEN if added else mask.bool() ^ marks_padding
    if seen.ndim > 2:  # a key that no query sees is padding
        seen = seen.flatten(1, -2).any(1)
    if not bool(seen.any()):
        sign = "True" if marks_padding else "0"
        raise ValueError(
            f"`{name}` says that every position is padding, which {sign} marks. Turn the mask "
            f"round, or leave it out."
        )
    return seen


def streams_of(model: nn.Module, batch: Any) -> dict[str, int]:
    """{layer: stream} by what a shorter stream shortens; empty where there is one stream.

    Args:
        model: runs twice on one sample, in evaluation mode, before any hooks of a calibration.
        batch: the first batch, on the model's device.
    """
    args, kwargs = arguments(first_of(batch, 1))
    if not any(name in kwargs for name in MASKS):
        return {}
    decoding = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    two = _second_length(kwargs) is not None or (decoding and "labels" in kwargs)
    shorter = _shorter_second(kwargs) if two else _shorter_masked(kwargs)
    if shorter is None:
        return {}
    moves, stays = (SECOND, FIRST) if two else (FIRST, NEITHER)
    try:
        whole, less = (_shapes(model, args, given) for given in (kwargs, shorter))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return {}
    found = {}
    for name, shapes in whole.items():
        after = less.get(name, [])
        moved = {a != b for a, b in zip(shapes, after, strict=False)}
        found[name] = BOTH if len(moved) > 1 else moves if True in moved else stays
    return found if set(found.values()) != {FIRST} else {}


def _shorter_second(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with a second stream that is a position shorter."""
    shorter = dict(kwargs)
    for name, axes in FOLLOWING.items():
        given = kwargs.get(name)
        if isinstance(given, Tensor):
            for axis in axes:
                if given.ndim > axis and given.shape[axis] > 1:
                    given = given.narrow(axis, 0, given.shape[axis] - 1)
            shorter[name] = given
    return shorter


def _shorter_masked(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inputs with what the mask masks a position shorter, beside others that it does not.

    None where the mask may be about all inputs, or may be about one in another order of axes.
    """
    tensors = {name: given for name, given in kwargs.items() if isinstance(given, Tensor)}
    shapes = {tuple(given.shape[:2]) for name, given in tensors.items() if name in MASKS}
    if len(shapes) != 1 or any(tensors[n].ndim != 2 for n in MASKS.keys() & tensors.keys()):
        return None
    (masked,) = shapes
    length = masked[1]
    moved = {n for n, given in tensors.items() if tuple(given.shape[:2]) == masked}
    others = [given for name, given in tensors.items() if name not in moved and given.ndim > 1]
    unclear = any(given.ndim == 3 and length in given.shape[1:] for given in others)
    if not others or unclear or length < 2 or moved <= MASKS.keys():
        return None
    return {n: v.narrow(1, 0, length - 1) if n in moved else v for n, v in kwargs.items()}


def _shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of every layer's inputs, call by call."""
    found: dict[str, list[tuple[int, ...]]] = {}

    def hook_for(weight: Weight) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = weight.inputs(args, kwargs)
            if inputs is not None:
                found.setdefault(weight.name, []).append(tuple(inputs.shape))

        return hook

    with ExitStack() as stack:
        for weight in weights_of(model).values():
            hook = hook_for(weight)
            handle = weight.module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        model(*args, **kwargs)
    return found

"""Which positions of a batch are padding, for every stream of it that layers may read.

A model with an encoder and a decoder reads two sequences, each with a mask of its own. Masks are
found among the model's inputs by the names in use:

- Hugging Face: `attention_mask` and `decoder_attention_mask`, 1 for a real position, or added to
  the scores (0 for real, very negative for padding); (batch, positions), or (batch, queries, keys)
  with or without a heads axis, of which a key that no query sees is padding;
- torch: `src_key_padding_mask`, `tgt_key_padding_mask`, `memory_key_padding_mask` and
  `key_padding_mask`, of the opposite meaning: True for padding.

A mask belongs to the layers that read its stream, and to rows in the order in which they lie; the
model shows both by running (`layout`). Where it cannot run so, a mask goes by its length.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from prunus.calibration.batches import size_of
from prunus.hints import Batch
from prunus.inputs import arguments
from prunus.views import Unclear

__all__ = ["Layout", "Padding", "padding_of", "second_length"]

FIRST, SECOND, BOTH, NEITHER = 0, 1, 2, 3
OUTPUT = "<output>"  # the model's output, among the layers of a layout
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
# Arguments that make the second stream.
MAKING = ("decoder_input_ids", "decoder_inputs_embeds", "tgt")
HIDDEN = -1e3  # an added mask is below this at padding


@dataclass(frozen=True)
class Layout:
    """What runs of a model show of the rows that its layers read; see `layout.layout_of`.

    Attributes:
        streams: {layer: stream}; empty where there is one stream, or it could not be told.
        turned: {layer: whether samples follow positions} in the order of the rows that it reads;
            a layer without an entry is one of which it is not known. `OUTPUT` is the model's.
        time_major: whether the inputs hold positions before samples.
        tables: layers whose rows are the same whatever the samples and however many, as those of
            relative positions: none of them is padding.
    """

    streams: Mapping[str, int] = field(default_factory=dict)
    turned: Mapping[str, bool] = field(default_factory=dict)
    time_major: bool = False
    tables: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Padding:
    """The real positions of a batch.

    Attributes:
        masks: {stream: Bool[batch, positions]}, True for a real position; None for a stream all
            of whose positions are real.
        lengths: {stream: positions} of the streams without a mask, where known.
        layout: what runs of the model showed.
    """

    masks: Mapping[int, Tensor | None]
    lengths: Mapping[int, int] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)

    def real(self, layer: str, channels: Callable[[], Tensor]) -> Tensor | None:
        """Input vectors less those at padding, or None where the layer's inputs have no padding.

        One vector per sequence passes as it is, and so do inputs that hold no padding any more.

        Args:
            layer: its name.
            channels: gives the layer's inputs with positions before channels.

        Raises:
            Unclear: no mask has the length of the layer's input, or two masks have; or samples
                and positions cannot be told apart.
        """
        if layer in self.layout.tables:
            return None
        stream = self.layout.streams.get(layer, BOTH)
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
            return rows[self._ordered(layer, fitting[0], lead)]
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
        if mask is None or output.ndim < 2:
            return None
        lead = tuple(output.shape[:2])
        fits = lead in (tuple(mask.shape), tuple(mask.T.shape))
        return self._ordered(OUTPUT, mask, lead) if fits else None

    def _ordered(self, layer: str, mask: Tensor, lead: tuple[int, ...]) -> Tensor:
        """The mask in the order of rows that lie as `lead` says."""
        one, other = (m.flatten() if len(lead) == 1 else m for m in (mask, mask.T))
        if one.shape != other.shape:
            return one if tuple(one.shape) == lead else other
        turned = self.layout.turned.get(layer)
        if turned is None and not torch.equal(one, other):
            what = "The model's output" if layer == OUTPUT else f"Layer {layer!r}"
            raise Unclear(
                f"{what} has rows of shape {lead} in a padded batch of shape "
                f"{tuple(mask.shape)}, and the model does not run on fewer samples, which would "
                f"show whether samples or positions come first. Exclude the layer, or let the "
                f"model take any number of samples."
            )
        return other if turned else one


def _fits(mask: Tensor, lead: tuple[int, ...]) -> bool:
    return lead in (tuple(mask.shape), (mask.numel(),), tuple(mask.T.shape))


def _alike(masks: list[Tensor]) -> bool:
    return all(torch.equal(mask, masks[0]) for mask in masks)


def padding_of(batch: Batch, layout: Layout | None = None) -> Padding | None:
    """The padding of a batch, or None where nothing is padded.

    Args:
        batch: on the model's device.
        layout: of the model's layers, as `layout.layout_of` has found it.

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
    layout = layout or Layout()
    length = second_length(kwargs, layout.time_major)
    if not layout.streams and length is None and SECOND not in masks:
        return Padding(masks, layout=layout)
    for stream in (FIRST, SECOND):
        masks.setdefault(stream, None)
    return Padding(masks, {} if length is None else {SECOND: length}, layout)


def _over_positions(mask: Tensor, samples: int | None) -> bool:
    """Whether a mask says which position sees which, the same for all samples."""
    if mask.shape[0] == samples or mask.ndim < 2:
        return False
    return mask.ndim > 2 or mask.shape[0] == mask.shape[1]


def second_length(kwargs: Mapping[str, Any], time_major: bool = False) -> int | None:
    """Positions of the second stream, or None where nothing of the batch says so."""
    for name in MAKING:
        given = kwargs.get(name)
        if isinstance(given, Tensor) and given.ndim >= 2:
            return int(given.shape[0 if time_major else 1])
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

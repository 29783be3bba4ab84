"""For comparisons with Torch-Pruning: networks of full size, and what it is told of attention.

No module of another folder is imported, so that processes that spawn may import this one by name.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

QUERIES = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q_lin", "k_lin", "v_lin", "q",
           "k", "v", "query_proj", "key_proj", "value_proj")  # fmt: skip
FUSED = ("qkv_proj", "query_key_value", "c_attn", "qkv")


def asked(description: str | None) -> argparse.Namespace | None:
    """What the command line says; None, and a message, where the peer is not there."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--peer", type=Path, help="folder with torch_pruning")
    given = parser.parse_args()
    if given.peer is not None:
        sys.path.insert(0, str(given.peer))
    if importlib.util.find_spec("torch_pruning") is None:
        print("torch-pruning is not installed; see the top of this file", file=sys.stderr)
        return None
    return given


def mobilenet_v2() -> tuple[Any, Any]:
    """MobileNetV2 of Sandler et al. (2018), table 2, and two images of 96²."""
    import torch
    from torch import nn

    def block(inputs: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        return nn.Sequential(
            nn.Conv2d(inputs, out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU6(inplace=True),
        )

    class Inverted(nn.Module):
        def __init__(self, inputs: int, out: int, stride: int, expansion: int) -> None:
            super().__init__()
            wide = inputs * expansion
            self.adds = stride == 1 and inputs == out
            self.path = nn.Sequential(
                *([block(inputs, wide, 1)] if expansion > 1 else []),
                block(wide, wide, 3, stride, wide),
                nn.Conv2d(wide, out, 1, bias=False),
                nn.BatchNorm2d(out),
            )

        def forward(self, x: Any) -> Any:
            return x + self.path(x) if self.adds else self.path(x)

    parts: list[nn.Module] = [block(3, 32, 3, 2)]
    inputs = 32
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
    for expansion, out, number, stride in rows:
        for i in range(number):
            parts.append(Inverted(inputs, out, stride if i == 0 else 1, expansion))
            inputs = out
    parts += [block(320, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*parts).eval(), torch.randn(2, 3, 96, 96)


def vit() -> tuple[Any, Any]:
    """ViT-S/16 (12 layers, 384 wide, 6 heads) of transformers, and two images of 224²."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
        num_labels=1000,
    )  # fmt: skip
    return ViTForImageClassification(config).eval(), torch.randn(2, 3, 224, 224)


def llama() -> tuple[Any, Any]:
    """Four blocks of Llama (512 wide, 8 heads on 4 of keys) of transformers, 2 × 128 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=1376, vocab_size=4000, max_position_embeddings=256, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randint(0, 4000, (2, 128))


def bert() -> tuple[Any, Any]:
    """Six layers of the width of BERT-base (768) of transformers, and 2 × 128 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(num_hidden_layers=6)
    return BertModel(config).eval(), torch.randint(0, 30000, (2, 128))


def heads_of(model: Any) -> dict[Any, int]:
    """Layers that make queries, keys and values, with their numbers of heads."""
    from torch import nn

    found: dict[Any, int] = {}
    for part in getattr(model, "qkv", ()):  # the attention written as einsum, heads of width 4
        found |= {layer: layer.out_features // 4 for layer in part}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module] = module.num_heads
        wide = next((int(v) for key in ("head_dim", "head_size", "attention_head_size", "d_kv",
                     "key_value_proj_dim") if isinstance(v := getattr(module, key, None), int)),
                    0)  # fmt: skip
        for leaf, child in module.named_children():
            out = getattr(child, "out_features", getattr(child, "nf", 0))
            if leaf in (*QUERIES, *FUSED) and wide and out and out % wide == 0:
                found[child] = out // wide // (3 if leaf in FUSED else 1)
    return found


def set_attributes(model: Any) -> None:
    """What users set after pruning heads, as the peer's examples do."""
    for module in model.modules():
        query = next((c for leaf, c in module.named_children() if leaf in QUERIES), None)
        wide = getattr(module, "head_dim", getattr(module, "attention_head_size", None))
        if query is None or not isinstance(wide, int):
            continue
        for key in ("num_attention_heads", "num_heads", "n_heads"):
            if isinstance(getattr(module, key, None), int):
                setattr(module, key, query.out_features // wide)
        keys = getattr(module, "k_proj", None)
        if keys is not None and isinstance(getattr(module, "num_key_value_groups", None), int):
            module.num_key_value_groups = query.out_features // max(1, keys.out_features)
        for key in ("all_head_size", "embed_dim", "inner_dim"):
            if isinstance(getattr(module, key, None), int):
                setattr(module, key, query.out_features)


def halves_of(model: Any) -> dict[Any, int]:
    """Projections that hold a gate and a value, in two parts, as the peer's example of LLMs has."""
    return {m: 2 for name, m in model.named_modules() if name.endswith("gate_up_proj")}


def own_pruners(model: Any) -> dict[Any, Any]:
    """A pruner for Swin's merging of patches, as the peer's example of Swin has one of its own."""
    from importlib import import_module

    kinds = {type(m) for m in model.modules() if type(m).__name__ == "SwinPatchMerging"}
    if not kinds:
        return {}
    peer = import_module("torch_pruning")

    class Merging(peer.BasePruningFunc):  # type: ignore[misc, name-defined]
        """Four neighbours side by side, so that a channel stands at four places."""

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.norm.normalized_shape[0]) // 4

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.reduction.out_features)

        def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
            peer.prune_linear_out_channels(layer.reduction, idxs)
            return layer

        def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
            wide = self.get_in_channels(layer)
            every = [i + wide * part for part in range(4) for i in idxs]
            peer.prune_linear_in_channels(layer.reduction, every)
            peer.prune_layernorm_out_channels(layer.norm, every)
            return layer

    return {kind: Merging() for kind in kinds}

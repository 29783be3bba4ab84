"""Networks of full size for the comparison with Torch-Pruning, built without downloads."""

from typing import Any


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

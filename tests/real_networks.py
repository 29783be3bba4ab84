"""Networks that people have, small and untrained: one operation each, and Hugging Face's families.

A table: name -> `Net`. `build(name)` gives the network in evaluation mode and examples: the second
one has another length or size where the network takes that. What is found in them is asked, not
written down, so that new kinds of units show themselves.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NETWORKS", "SECTION_0", "Net", "build"]


@dataclass(frozen=True)
class Net:
    """How one network is made.

    Attributes:
        make: () -> the network.
        examples: () -> batches, keyword inputs as mappings.
        hugging_face: whether it comes from transformers.
    """

    make: Callable[[], nn.Module]
    examples: Callable[[], tuple[Any, ...]]
    hugging_face: bool = False


class Functional(nn.Module):
    """Named layers, and a function that runs them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def images(*sizes: int, channels: int = 3) -> Callable[[], tuple[Any, ...]]:
    return lambda: tuple(torch.randn(2, channels, size, size) for size in sizes)


def rows(*lengths: int, wide: int = 6) -> Callable[[], tuple[Any, ...]]:
    return lambda: tuple(torch.randn(2, length, wide) for length in lengths)


def conv(wide: int, out: int, size: int = 3, **options: Any) -> nn.Module:
    return nn.Conv2d(wide, out, size, padding=size // 2, **options)


def convolutions(run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> Net:
    return Net(lambda: Functional(run, **copy.deepcopy(layers)), images(8, 12))


def shuffled(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Attention(nn.Module):
    """Two blocks of attention whose products are written as einsum, width 16, four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 16)
        self.qkv = nn.ModuleList(nn.ModuleList(nn.Linear(16, 16) for _ in "qkv") for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for parts, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (part(x).unflatten(2, (-1, 4)) for part in parts)
            weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 2).softmax(-1)
            x = x + out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
        return self.head(x)


class Recurrent(nn.Module):
    """A recurrent module and a head on its last state."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.rnn = getattr(nn, kind)(8, 12, batch_first=True, **options)
        wide = 12 * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.enter(x))[0])


class UNet(nn.Module):
    """Two scales down and up again, with skips by concatenation and transposed convolutions."""

    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        self.down1, self.norm1 = conv(3, wide), nn.BatchNorm2d(wide)
        self.down2, self.norm2 = conv(wide, 2 * wide), nn.BatchNorm2d(2 * wide)
        self.middle = conv(2 * wide, 2 * wide)
        self.up2 = nn.ConvTranspose2d(2 * wide, wide, 2, stride=2)
        self.join2 = conv(3 * wide, wide)
        self.up1 = nn.ConvTranspose2d(wide, wide, 2, stride=2)
        self.join1, self.head = conv(2 * wide, wide), nn.Conv2d(wide, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.norm1(self.down1(x)))
        two = F.relu(self.norm2(self.down2(F.max_pool2d(one, 2))))
        x = F.relu(self.middle(F.max_pool2d(two, 2)))
        x = F.relu(self.join2(torch.cat([self.up2(x), two], 1)))
        return self.head(F.relu(self.join1(torch.cat([self.up1(x), one], 1))))


class DenseNet(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), conv(w, 4)) for w in (8, 12, 16)
        )
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x.mean((2, 3)))


def gated(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.a(x))
    gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
    return self.b(x * gate)


def chosen(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    x = torch.where(x > 0, x, 0.1 * x)
    return self.b(x.masked_fill(torch.arange(x.shape[3]) == 0, 0.0))


ONE_OPERATION: dict[str, Net] = {
    "pixel shuffle": convolutions(
        lambda s, x: s.b(F.pixel_shuffle(F.relu(s.a(x)), 2)), a=conv(3, 16), b=conv(4, 3)
    ),
    "SE gate": convolutions(
        gated, a=conv(3, 12), down=nn.Conv2d(12, 4, 1), up=nn.Conv2d(4, 12, 1), b=conv(12, 3)
    ),
    "channel shuffle": convolutions(
        lambda s, x: s.b(shuffled(F.relu(s.a(x)), 2)), a=conv(3, 12), b=conv(12, 3, groups=1)
    ),
    "interpolate": convolutions(
        lambda s, x: s.b(F.interpolate(F.relu(s.a(x)), scale_factor=2)), a=conv(3, 8), b=conv(8, 3)
    ),
    "unflatten": convolutions(
        lambda s, x: s.b(F.relu(s.a(x).unflatten(1, (3, -1))).flatten(1, 2)),
        a=conv(3, 12), b=conv(12, 3),
    ),
    "where": convolutions(chosen, a=conv(3, 8), b=conv(8, 3)),
    "group norm": convolutions(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.n(s.a(x)))))),
        a=conv(3, 8), n=nn.GroupNorm(2, 8), b=conv(8, 6), c=conv(6, 3),
    ),
    "transposed convolution": convolutions(
        lambda s, x: s.b(F.relu(s.t(F.relu(s.a(x))))),
        a=conv(3, 8), t=nn.ConvTranspose2d(8, 6, 2, stride=2), b=conv(6, 3),
    ),
    "cumsum": Net(lambda: Functional(
        lambda s, x: s.b(F.relu(s.a(x)).cumsum(1)), a=nn.Linear(6, 12), b=nn.Linear(12, 3)
    ), rows(7, 11)),
    "index_select": Net(lambda: Functional(
        lambda s, x: s.b(F.relu(s.a(x)).index_select(1, torch.arange(x.shape[1] - 1))),
        a=nn.Linear(6, 12), b=nn.Linear(12, 3),
    ), rows(7, 11)),
    "einsum attention": Net(Attention, rows(7, 11)),
    "LSTM": Net(lambda: Recurrent("LSTM"), rows(7, 11)),
    "module called twice": Net(lambda: Functional(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.b(F.relu(s.a(x))))))),
        a=nn.Linear(6, 12), b=nn.Linear(12, 12), c=nn.Linear(12, 3),
    ), rows(7, 11)),
    "nn.TransformerEncoderLayer": Net(lambda: nn.Sequential(
        nn.Linear(6, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.Linear(16, 3)
    ), rows(7, 11)),
}  # fmt: skip

OTHERS: dict[str, Net] = {
    "U-Net": Net(UNet, images(8, 16)),
    "DenseNet": Net(DenseNet, images(8, 12)),
    "GRU, two layers": Net(lambda: Recurrent("GRU", num_layers=2), rows(7, 11)),
    "RNN, bidirectional": Net(lambda: Recurrent("RNN", bidirectional=True), rows(7, 11)),
    "depthwise separable": convolutions(
        lambda s, x: s.c(F.relu(s.n(s.b(F.relu6(s.d(F.relu6(s.a(x)))))))),
        a=conv(3, 12), d=conv(12, 12, groups=12), b=nn.Conv2d(12, 8, 1), n=nn.BatchNorm2d(8),
        c=conv(8, 3),
    ),
    "nn.MultiheadAttention": Net(lambda: Functional(
        lambda s, x: s.c(s.m(*[F.relu(s.a(x))] * 3, need_weights=False)[0]),
        a=nn.Linear(6, 16), m=nn.MultiheadAttention(16, 4, batch_first=True), c=nn.Linear(16, 3),
    ), rows(7, 11)),
}  # fmt: skip

WORDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
GROUPED = {**WORDS, **SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
IMAGE = {"image_size": 16, "patch_size": 4, "num_channels": 3}


def ids(*lengths: int, **more: Callable[[int], Tensor]) -> Callable[[], tuple[Any, ...]]:
    """Token numbers, and inputs that depend on the length."""

    def make() -> tuple[Any, ...]:
        return tuple(
            {
                "input_ids": torch.randint(3, 64, (2, length)),
                **{key: of(length) for key, of in more.items()},
            }
            for length in lengths
        )

    return make


def padded(*lengths: int) -> Callable[[], tuple[Any, ...]]:
    """Token numbers, and a last batch one of whose samples is shorter."""

    def make() -> tuple[Any, ...]:
        batches = list(ids(*lengths)())
        mask = torch.ones(2, lengths[-1], dtype=torch.long)
        mask[1, lengths[-1] // 2 :] = 0
        return (*batches, {"input_ids": batches[-1]["input_ids"] * mask, "attention_mask": mask})

    return make


def targets(length: int) -> Tensor:
    return torch.randint(3, 64, (2, max(3, length // 2)))


def pixels(*sizes: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: tuple({"pixel_values": torch.randn(2, 3, size, size)} for size in sizes)


def family(kind: str, config: str, examples: Callable[[], tuple[Any, ...]], **fields: Any) -> Net:
    """A Hugging Face model of random weights; keywords with `model__` go to the model."""

    def make() -> nn.Module:
        import transformers

        own = dict(fields)
        attention = own.pop("attention", None)
        settings = getattr(transformers, config)(**own)
        if attention is not None:
            settings._attn_implementation = attention
        return getattr(transformers, kind)(settings)

    return Net(make, examples, hugging_face=True)


def decoder(kind: str, **fields: Any) -> Net:
    return family(
        f"{kind}ForCausalLM", f"{kind}Config", padded(9, 14), **{**GROUPED, **fields}
    )  # fmt: skip


FAMILIES: dict[str, Net] = {
    "ResNet": family("ResNetForImageClassification", "ResNetConfig", pixels(32, 48),
                     embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1]),
    "ConvNeXt": family("ConvNextForImageClassification", "ConvNextConfig", pixels(32, 64),
                       hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "MobileNetV2": family("MobileNetV2ForImageClassification", "MobileNetV2Config",
                          pixels(32, 64), depth_multiplier=0.35, image_size=32),
    "Llama (sdpa)": decoder("Llama", attention="sdpa"),
    "Llama (eager)": decoder("Llama", attention="eager"),
    "Llama (tied)": decoder("Llama", tie_word_embeddings=True),
    "Qwen2": decoder("Qwen2"),
    "Qwen3": decoder("Qwen3", head_dim=8),
    "Gemma2": decoder("Gemma2", head_dim=8, query_pre_attn_scalar=8),
    "Phi3": decoder("Phi3"),
    "GPT-NeoX": family("GPTNeoXForCausalLM", "GPTNeoXConfig", padded(9, 14), **WORDS, **SIZES),
    "OPT": family("OPTForCausalLM", "OPTConfig", padded(9, 14), **WORDS, hidden_size=32, ffn_dim=48,
                  num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
                  word_embed_proj_dim=32),
    "BERT": family("BertForMaskedLM", "BertConfig", padded(9, 14), **WORDS, **SIZES),
    "RoBERTa": family("RobertaForMaskedLM", "RobertaConfig", padded(9, 14), **WORDS, **SIZES,
                      max_position_embeddings=64),
    "DistilBERT": family("DistilBertForMaskedLM", "DistilBertConfig", padded(9, 14), vocab_size=64,
                         dim=32, hidden_dim=48, n_layers=2, n_heads=4),
    "DeBERTa-v2": family("DebertaV2ForMaskedLM", "DebertaV2Config", padded(9, 14), **WORDS, **SIZES,
                         relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "BART": family("BartForConditionalGeneration", "BartConfig",
                   ids(9, 14, decoder_input_ids=targets), **WORDS, d_model=32,
                   encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
                   decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4,
                   decoder_start_token_id=2, forced_eos_token_id=2),
    "ViT": family("ViTForImageClassification", "ViTConfig", pixels(16), **SIZES, **IMAGE),
    "DINOv2": family("Dinov2ForImageClassification", "Dinov2Config", pixels(16, 24), **IMAGE,
                     hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2),
    "Swin": family("SwinForImageClassification", "SwinConfig", pixels(16), image_size=16,
                   patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4),
    "Whisper": family(
        "WhisperForConditionalGeneration", "WhisperConfig",
        lambda: tuple({"input_features": torch.randn(2, 8, 32),
                       "decoder_input_ids": targets(length)} for length in (9, 14)),
        vocab_size=64, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=4,
        decoder_attention_heads=4, max_source_positions=16, max_target_positions=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None),
    "GPT-2": family("GPT2LMHeadModel", "GPT2Config", padded(9, 14), vocab_size=64, n_embd=32,
                    n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    "Mixtral": decoder("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "Mamba": family("MambaForCausalLM", "MambaConfig", ids(9, 14), **WORDS, hidden_size=32,
                    num_hidden_layers=2, state_size=4),
    "T5": family("T5ForConditionalGeneration", "T5Config", ids(9, 14, decoder_input_ids=targets),
                 vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                 decoder_start_token_id=0),
}  # fmt: skip

MORE_FAMILIES: dict[str, Net] = {
    "Mistral": decoder("Mistral", sliding_window=8),
    "Gemma3": family("Gemma3ForCausalLM", "Gemma3TextConfig", padded(9, 14), **GROUPED, head_dim=8,
                     query_pre_attn_scalar=8, sliding_window=8),
    "OLMo2": decoder("Olmo2"),
    "Cohere": decoder("Cohere"),
    "Falcon": family("FalconForCausalLM", "FalconConfig", ids(9, 14), **WORDS, hidden_size=32,
                     num_hidden_layers=2, num_attention_heads=4, new_decoder_architecture=True,
                     num_kv_heads=2),
    "BLOOM": family("BloomForCausalLM", "BloomConfig", ids(9, 14), **WORDS, hidden_size=32,
                    n_layer=2, n_head=4),
    "ELECTRA": family("ElectraForMaskedLM", "ElectraConfig", padded(9, 14), **WORDS, **SIZES,
                      embedding_size=16),
    "ALBERT": family("AlbertForMaskedLM", "AlbertConfig", padded(9, 14), **WORDS, **SIZES,
                     embedding_size=16),
    "CLIP": family("CLIPVisionModel", "CLIPVisionConfig", pixels(16), **SIZES, **IMAGE),
    "RegNet": family("RegNetForImageClassification", "RegNetConfig", pixels(32, 48),
                     embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8),
    "Qwen3-MoE": decoder("Qwen3Moe", head_dim=8, num_experts=4, num_experts_per_tok=2,
                         moe_intermediate_size=24),
}  # fmt: skip

SECTION_0 = (*ONE_OPERATION, *FAMILIES)  # the 39 networks of the first comparison
NETWORKS: dict[str, Net] = {**ONE_OPERATION, **OTHERS, **FAMILIES, **MORE_FAMILIES}


def _enlarged(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.ndim > 1:
            with torch.no_grad():
                parameter.mul_(5 if float(parameter.std()) < 0.05 else 1)


def build(name: str, *, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """A network in evaluation mode, its norms and biases as after training, and its examples."""
    net = NETWORKS[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = net.make().eval()
        for module in model.modules():  # made once, or so small that attention is uniform
            if not net.hugging_face and hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif net.hugging_face and not any(module.children()):
                _enlarged(module)
        for module in model.modules():
            if "Norm" in type(module).__name__ and isinstance(
                weight := getattr(module, "weight", None), Tensor
            ):
                with torch.no_grad():
                    weight.add_(torch.randn_like(weight), alpha=0.2)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                nn.init.normal_(parameter, 0.0, 0.1)
        return model, net.examples()

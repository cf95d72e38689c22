"""One small random model of each architecture, with spectra that fall, so that ranks mean something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from builders import shape_spectra_
from torch import nn

from lowrank.backends.inputs import Feed
from lowrank.backends.torch.module import ModuleBackend
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.weight import Coupling
from lowrank.core.weight_analysis import analyze_weight
from lowrank.pipeline.analyzing import analyze_couplings
from lowrank.progress import silent

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**WIDTHS, "vocab_size": 64, "max_position_embeddings": 64}
DECODER = {**TEXT, "num_key_value_heads": 2}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 64,
}


def transformers_model(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**settings))

    return build


class MinGPTBlock(nn.Module):
    """A block in minGPT's form: a fused linear layer for query, key and value, and a causal mask."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        mask = torch.ones_like(scores[0, 0]).tril() == 0
        mixed = scores.masked_fill(mask, float("-inf")).softmax(-1) @ v
        x = x + self.c_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class MinGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(64, 32)
        self.h = nn.ModuleList([MinGPTBlock()])
        self.lm_head = nn.Linear(32, 64, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.wte(idx)
        for block in self.h:
            x = block(x)
        return self.lm_head(x)


def plain_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 1)


VISION = {**WIDTHS, "image_size": 16, "patch_size": 8}
ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "bert": transformers_model("BertModel", "BertConfig", **TEXT),
    "roberta": transformers_model(
        "RobertaModel", "RobertaConfig", **{**TEXT, "max_position_embeddings": 66}, type_vocab_size=1, pad_token_id=1
    ),
    "distilbert": transformers_model(
        "DistilBertModel", "DistilBertConfig", dim=32, n_layers=1, n_heads=4, hidden_dim=64, vocab_size=64
    ),
    "gpt2": transformers_model("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=1, n_head=4, vocab_size=64),
    "opt": transformers_model(
        "OPTForCausalLM",
        "OPTConfig",
        **{k: v for k, v in TEXT.items() if k != "intermediate_size"},
        ffn_dim=64,
        word_embed_proj_dim=32,
    ),
    "llama": transformers_model("LlamaForCausalLM", "LlamaConfig", **DECODER),
    "qwen3": transformers_model("Qwen3ForCausalLM", "Qwen3Config", **DECODER, head_dim=8),
    "gemma3": transformers_model("Gemma3ForCausalLM", "Gemma3TextConfig", **DECODER, head_dim=8, sliding_window=16),
    "modernbert": transformers_model("ModernBertModel", "ModernBertConfig", **TEXT, pad_token_id=0, local_attention=16),
    "t5": transformers_model(
        "T5ForConditionalGeneration", "T5Config", d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=64
    ),
    "mixtral": transformers_model("MixtralForCausalLM", "MixtralConfig", **DECODER, num_local_experts=4),
    "vit": transformers_model("ViTForImageClassification", "ViTConfig", **VISION),
    "deit": transformers_model("DeiTForImageClassification", "DeiTConfig", **VISION),
    "swin": transformers_model(
        "SwinForImageClassification",
        "SwinConfig",
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=4,
    ),
    "clip": transformers_model(
        "CLIPModel",
        "CLIPConfig",
        text_config={**TEXT, "max_position_embeddings": 32, "eos_token_id": 63},
        vision_config=VISION,
        projection_dim=16,
    ),
    "whisper": transformers_model(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        **SEQ2SEQ,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "wav2vec2": transformers_model(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        **WIDTHS,
        vocab_size=32,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    ),
    "encoder": plain_encoder,
    "mingpt": MinGPT,
    "resnet": transformers_model(
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        num_labels=4,
    ),
}


def build(name: str) -> nn.Module:
    """The model, the same in every run, with no tensor left at its neutral start."""
    torch.manual_seed(0)
    model = shape_spectra_(ARCHITECTURES[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and float(parameter.detach().abs().max()) == 0.0:
                parameter.normal_(0, 0.5)
            elif parameter.dim() == 3 and parameter.shape[0] > 1:
                # Stacks of experts are left unset by their class, or nearly zero.
                parameter.normal_(0, 0.2)
    return model


def with_biases(name: str) -> nn.Module:
    """A model whose biases are not zero, where dropping and folding them could not be seen."""
    torch.manual_seed(0)
    model = build(name)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def analysis_of(dense: ModuleBackend, couplings: Sequence[Coupling], feeds: tuple[Feed, ...]) -> Analysis:
    """Some couplings and their weights, on a few batches that serve as every fold."""
    calibration = Calibration(feeds, feeds, feeds, dense, {"samples": 4})
    names = {name for coupling in couplings for name in coupling.weights}
    weights = [w for w in dense.weights if w.name in names]
    grams = collect_grams(calibration, weights, silent, names)
    records = tuple(analyze_weight(w, dense.read(w.name), grams[w.name]) for w in weights)
    return Analysis(records, couplings=analyze_couplings(dense, couplings, grams), grams=grams)

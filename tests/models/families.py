"""Lists the model families that the table in docs/models.md is made of, with a small random model of each.

Sizes are those that vLLM's CPU kernels accept (head dimensions of 32, experts of multiples of 32).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VOCAB = 128
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
HEADS = {**COMMON, "head_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}

BF16_ONLY = "linear attention on a CPU is bf16 only"
IN_BF16 = "engine and trainer in bf16, whose rounding these gaps are"


@dataclass(frozen=True)
class Family:
    """Describes one family: a transformers model_type with the settings of its small model.

    packs: whether several trajectories in one row are exact; otherwise `learner.packing` is refused.
    refused: what vLLM's refusal says where no engine serves it on this machine; None where one does.
    tolerance: largest gap in nats that is accepted after 20 updates, with the reason in `note` where it is not the usual one.
    """

    name: str
    kind: str
    config: dict[str, Any]
    packs: bool = True
    refused: str | None = None
    disagrees: bool = False  # the engine computes another model: a run stops at its start
    note: str = ""
    tolerance: float = 1e-4
    dtype: str = "float32"  # the engine's
    scale: float = 0.1  # standard deviation of the random weights


FAMILIES: tuple[Family, ...] = (
    Family("llama", "llama", HEADS),
    Family("llama-tied", "llama", {**HEADS, "tie_word_embeddings": True}),
    Family("qwen2", "qwen2", {**COMMON, "tie_word_embeddings": True}),
    Family("qwen3", "qwen3", {**HEADS, "tie_word_embeddings": True}),
    Family("mistral-sliding", "mistral", {**HEADS, "sliding_window": 8}),
    Family("ministral3", "ministral3", HEADS),
    Family("phi", "phi", {**COMMON, "num_key_value_heads": 2}),
    Family("phi3", "phi3", COMMON),
    Family("phi3-sliding", "phi3", {**COMMON, "sliding_window": 8}),
    Family("gemma", "gemma", HEADS),
    Family(
        "gemma2",
        "gemma2",
        {**HEADS, "sliding_window": 8, "query_pre_attn_scalar": 32},
    ),
    Family(
        "gemma3",
        "gemma3_text",
        {
            **HEADS,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 32,
        },
    ),
    Family("olmo2", "olmo2", COMMON),
    Family("olmo3", "olmo3", {**COMMON, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    Family("smollm3", "smollm3", {**COMMON, "no_rope_layers": [1, 0]}),
    Family("gpt-neox", "gpt_neox", {**COMMON, "num_key_value_heads": 2}),
    Family("gpt2", "gpt2", {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    Family(
        "opt",
        "opt",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        packs=False,
    ),
    Family(
        "falcon",
        "falcon",
        {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": False},
        packs=False,
    ),
    Family(
        "falcon-alibi",
        "falcon",
        {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True},
        packs=False,
    ),
    Family(
        "gptj",
        "gptj",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "rotary_dim": 16},
    ),
    Family(
        "gpt-bigcode", "gpt_bigcode", {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}
    ),
    Family("starcoder2", "starcoder2", COMMON),
    Family("stablelm", "stablelm", COMMON),
    Family(
        "granite",
        "granite",
        {
            **COMMON,
            "logits_scaling": 8.0,
            "attention_multiplier": 0.17,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 6.0,
        },
        scale=0.3,
    ),
    Family("cohere", "cohere", {**COMMON, "logit_scale": 0.25}),
    Family("cohere2", "cohere2", {**HEADS, "logit_scale": 0.25, "sliding_window": 8}),
    Family("nemotron", "nemotron", COMMON),
    Family("seed-oss", "seed_oss", HEADS),
    Family("glm4", "glm4", HEADS),
    Family("exaone4", "exaone4", {**HEADS, "sliding_window": 8}),
    Family(
        "bloom",
        "bloom",
        {"vocab_size": VOCAB, "hidden_size": 64, "n_layer": 2, "n_head": 2},
        packs=False,
        tolerance=1e-3,
        note="transformers approximates GELU by tanh, vLLM computes it exactly: within the start's limit of 1e-3",
    ),
    Family(
        "mpt",
        "mpt",
        {"vocab_size": VOCAB, "d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 256},
        packs=False,
        refused="MptForCausalLM was supported in vLLM until v0.28.0",
    ),
    Family(
        "minicpm3",
        "minicpm3",
        {
            **COMMON,
            "num_key_value_heads": 2,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
        },
    ),
    Family(
        "deepseek-v3",
        "deepseek_v3",
        {
            **COMMON,
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 64,
            "v_head_dim": 32,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "first_k_dense_replace": 1,
        },
        disagrees=True,
    ),
    Family("qwen2-moe", "qwen2_moe", {**COMMON, **EXPERTS, "shared_expert_intermediate_size": 64}),
    Family("qwen3-moe", "qwen3_moe", {**HEADS, **EXPERTS}),
    Family("mixtral", "mixtral", {**COMMON, **LOCAL_EXPERTS}),
    Family("olmoe", "olmoe", {**COMMON, "num_experts": 4, "num_experts_per_tok": 2}),
    Family(
        "granite-moe", "granitemoe", {**COMMON, **LOCAL_EXPERTS, "logits_scaling": 4.0, "attention_multiplier": 0.17}
    ),
    Family(
        "glm4-moe",
        "glm4_moe",
        {
            **HEADS,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    Family(
        "ernie4.5-moe",
        "ernie4_5_moe",
        {**COMMON, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_layer_start_index": 0},
        disagrees=True,
    ),
    Family(
        "gpt-oss",
        "gpt_oss",
        {
            **HEADS,
            **LOCAL_EXPERTS,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "intermediate_size": 64,
        },
        packs=False,
        refused="past its own reload",
    ),
    Family(
        "lfm2",
        "lfm2",
        {
            **COMMON,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "conv_dim": 64,
            "block_dim": 64,
            "block_ff_dim": 96,
            "block_multiple_of": 32,
            "block_ffn_dim_multiplier": 1.0,
        },
        packs=False,
        disagrees=True,
        note="vLLM's attention of LFM2 on a CPU is not transformers'; its convolutions are",
    ),
    Family(
        "qwen3-next",
        "qwen3_next",
        {**HEADS, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 64},
        packs=False,
        refused=BF16_ONLY,
    ),
    Family("qwen3.5", "qwen3_5_text", {**HEADS, **LINEAR}, packs=False, refused=BF16_ONLY),
    Family(
        "qwen3.5-bf16", "qwen3_5_text", {**HEADS, **LINEAR}, packs=False, dtype="bfloat16", tolerance=0.3, note=IN_BF16
    ),
    Family(
        "falcon-h1",
        "falcon_h1",
        {
            **HEADS,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 2,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "lm_head_multiplier": 0.5,
        },
        packs=False,
    ),
    Family(
        "mamba",
        "mamba",
        {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16},
        packs=False,
        refused="selective_scan_fwd",
        note="vLLM's CPU build has no kernel for it",
    ),
    Family(
        "mamba2",
        "mamba2",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 4,
            "head_dim": 32,
            "n_groups": 1,
        },
        packs=False,
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}
FEW = ("llama", "gpt2", "qwen3-moe", "granite", "opt")  # what `make test` runs; `make models` runs all

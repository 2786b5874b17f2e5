"""The head against each family's own forward, values and gradients: what a model does to its logits is its family's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.families import COMMON, HEADS
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from learner.families.logit_scale import LogitScale, logit_scale
from learner.policy import Policy

SCALED: dict[str, dict[str, Any]] = {
    "llama": HEADS,
    "granite": {**COMMON, "logits_scaling": 8.0},
    "granitemoe": {**COMMON, "logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "cohere": {**COMMON, "logit_scale": 0.25},
    "cohere2": {**HEADS, "logit_scale": 0.25},
    "hyperclovax": {**HEADS, "logits_scaling": 0.25},
    "minicpm3": {
        **COMMON,
        "num_key_value_heads": 2,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "dim_model_base": 16,
    },
    "falcon_h1": {
        **HEADS,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 2,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "lm_head_multiplier": 0.5,
    },
    "gemma2": {**HEADS, "final_logit_softcapping": 3.0},
    "gemma3_text": {**HEADS, "final_logit_softcapping": 3.0, "layer_types": ["full_attention"] * 2},
    "nanochat": {**COMMON, "final_logit_softcapping": 3.0},
    "recurrent_gemma": {**COMMON, "logits_soft_cap": 3.0, "block_types": ["attention"], "lru_width": 64},
}


@pytest.mark.parametrize("kind", SCALED)
def test_log_probs_and_gradients_are_those_of_the_models_own_forward(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SCALED[kind]), attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.3)
    tokens = torch.randint(2, 100, (1, 9))
    policy = Policy(model).eval()
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    logp, *_ = policy(tokens, torch.arange(9)[None], torch.arange(8), tokens[0, 1:], 1.0)
    logp.square().sum().backward()
    assert float((logp - expected).detach().abs().max()) < 2e-5
    assert set(gradients) == {name for name, p in policy.named_parameters() if p.grad is not None}
    for name, parameter in policy.named_parameters():
        if name in gradients:
            assert parameter.grad is not None
            largest = float(gradients[name].abs().max())
            assert float((parameter.grad - gradients[name]).abs().max()) <= 1e-4 * largest + 1e-6, name
    # A scale that the test could not see would prove nothing: without it the gap is large.
    if policy.logits != LogitScale():
        policy.logits = LogitScale()
        unscaled, *_ = policy(tokens, torch.arange(9)[None], torch.arange(8), tokens[0, 1:], 1.0)
        assert float((unscaled - expected).detach().abs().max()) > 0.05


def test_a_factor_of_zero_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="logits_scaling of this granite model is 0"):
        logit_scale(SimpleNamespace(model_type="granite", logits_scaling=0.0))


def test_a_key_of_that_name_means_nothing_in_other_families() -> None:
    """MPT's configuration has a logit_scale that its forward in transformers does not use."""
    assert logit_scale(SimpleNamespace(model_type="mpt", logit_scale=2.0)) == LogitScale()

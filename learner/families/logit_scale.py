"""Reads from a model's configuration what it does to its logits between the output layer and the softmax.

The head of `learner.policy.Policy` stands in for what `forward` of a causal language model does after its decoder. Most families
return the product as it is; some multiply, divide or cap it, each under a name of its own, and one name means two things:
Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it. Hence a rule a family, from transformers' modelling files, and
not a rule a name. That the rule is right is measured when a run starts and, over all families, by tests/models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# model_type (or how it begins) -> the key, and whether logits are multiplied or divided by its value.
MULTIPLIED = {"cohere": "logit_scale", "hyperclovax": "logits_scaling", "falcon_h1": "lm_head_multiplier"}
DIVIDED = {"granite": "logits_scaling", "minicpm3": "logits_scaling"}
CAPS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
)  # Gemma and NanoChat, RecurrentGemma, xLSTM


@dataclass(frozen=True, slots=True)
class LogitScale:
    """Turns the output layer's product x into logits: softcap * tanh(factor x / softcap), or factor x without a soft cap."""

    factor: float = 1.0
    softcap: float | None = None


def logit_scale(config: Any) -> LogitScale:
    """Returns what the family of `config` (a transformers configuration) does to its logits. ValueError for a factor of 0."""
    kind = str(config.model_type)
    factor = 1.0
    for table, power in ((MULTIPLIED, 1), (DIVIDED, -1)):
        for family, key in table.items():
            if kind.startswith(family):
                value = float(getattr(config, key))
                if value == 0:
                    raise ValueError(f"{key} of this {kind} model is 0: its logits would be all 0, or infinite")
                factor = value**power
    caps = (getattr(config, name, None) for name in CAPS)
    return LogitScale(factor, next((float(cap) for cap in caps if cap is not None), None))

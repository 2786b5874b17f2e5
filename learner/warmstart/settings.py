"""Defines the settings that a warm-start model depends on, and the key it is cached under."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs import catalog
from learner.settings import EnvironmentSettings

FORMAT = 2  # part of the cache key: raise it when the same settings give another model


class InitModelSettings(BaseModel):
    """Defines everything the model depends on; each field is in the cache key. The defaults suit countdown with 4 digits."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    architecture: Literal["qwen3", "qwen2", "llama", "gemma"] = "qwen3"
    hidden_size: int = Field(64, gt=0)
    layers: int = Field(3, gt=0)
    heads: int = Field(2, gt=0)
    kv_heads: int = Field(1, gt=0)
    head_dim: int = Field(32, ge=32, multiple_of=2, description="vLLM's CPU attention needs 32 or more")
    intermediate_size: int = Field(192, gt=0)
    tie_word_embeddings: bool = True
    max_position_embeddings: int = Field(256, gt=0)
    environments: tuple[EnvironmentSettings, ...] = Field(min_length=1, description="mixed with equal shares")
    seed: int = Field(0, ge=0)
    steps: int = Field(700, ge=0, description="0: random weights")
    batch_size: int = Field(64, gt=0, description="prompts a step")
    responses_per_prompt: int = Field(4, gt=0, description="demonstrations of each in a step; they share its forward")
    train_prompts: int = Field(8192, gt=0, description="distinct prompts, shared by the environments")
    lr: float = Field(3e-3, gt=0, description="AdamW on embeddings and norms; linear to 0")
    matrix_lr: float = Field(0.05, ge=0, description="Muon on the weight matrices; 0: AdamW with lr on everything")
    warmup_steps: int = Field(20, ge=0)
    target_accuracy: float | None = Field(None, gt=0, le=1, description="stop early once sampled accuracy reaches it")
    holdout_prompts: int = Field(64, gt=0, description="prompts of the eval split")
    holdout_responses: int = Field(16, gt=0, description="sampled for each, at temperature 1")

    @model_validator(mode="after")
    def _shapes_fit(self) -> InitModelSettings:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.architecture == "qwen2" and self.hidden_size != self.heads * self.head_dim:
            raise ValueError(
                f"qwen2 has hidden_size = heads * head_dim, but {self.hidden_size} != {self.heads} * {self.head_dim}"
            )
        return self

    def key(self) -> str:
        """Returns 16 hex digits that change with any field.

        They are a sha256 of the settings as sorted JSON, the format version, and the files of environments that are the user's
        own. Raises ValueError where one of those cannot be found.
        """
        data = {"format": FORMAT, "settings": self.model_dump(mode="json")}
        own = {e.name: catalog.fingerprint(e.name) for e in self.environments if e.name not in catalog.BUILTIN}
        text = json.dumps(data | ({"own": own} if own else {}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

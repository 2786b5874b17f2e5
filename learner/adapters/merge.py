"""Adds an adapter to its base model, for those who want one model: in float32, once, at the end.

A run never merges: in bf16 a weight's rounding is larger than what an update changes, so that most of the adapter would be lost.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def merge(adapter: Path, base: str, out: Path) -> None:
    """Writes the base model with the adapter of a folder added, in float32, as a folder that from_pretrained and vLLM load."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    merged.save_pretrained(out)

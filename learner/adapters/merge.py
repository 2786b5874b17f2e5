"""Adds an adapter to its base model, for those who want one model: in float32, once, at the end.

A run never merges. In bf16 a weight is rounded by more than an update changes it: of what an adapter does to a layer's output after
one Adam step of 1e-5, 99 % would be lost, and after 20 of them 76 %.
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

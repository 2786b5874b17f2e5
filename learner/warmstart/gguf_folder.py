"""Turns a GGUF file, quantised weights with their tokenizer, into a Hugging Face folder that trainer and engine load.

transformers reads the file itself, through the gguf package. What it makes of it cannot be saved as it is: the configuration still
says that the weights are quantised. So the weights go, dequantised to float32, into a model built from the rest of it.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# transformers leaves results of from_pretrained and parameters of save_pretrained untyped.

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from learner.warmstart.whole_folder import no_progress_bars

PACKAGE = "gguf"


def can_convert() -> bool:
    """Returns whether the package that reads GGUF files is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def convert(file: Path, folder: Path, chat_template: str | None = None) -> int:
    """Writes weights (safetensors, float32), tokenizer and generation config into `folder`; returns the number of parameters.

    chat_template: for a file that brings none. Responses end at the tokenizer's eos token, which for a model tuned on chats
    is the end of a turn. Raises OSError or ValueError, by transformers, for a file that is none or of an unknown architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    with no_progress_bars():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = type(read.config).from_dict(
            {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
        )
        config.eos_token_id, config.name_or_path = tokenizer.eos_token_id, ""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        if _adds_bos(file):  # transformers leaves it out, and a model that was trained with it is lost without
            tokenizer.add_bos_token = True
            tokenizer.update_post_processor()
        if chat_template is not None and not tokenizer.chat_template:
            tokenizer.chat_template = chat_template
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _adds_bos(file: Path) -> bool:
    """Returns whether the file says that every text begins with the token that begins texts."""
    gguf: Any = importlib.import_module(PACKAGE)
    field = gguf.GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
    return field is not None and bool(field.contents())

"""Gives vLLM its text-only Qwen3.5 on machines without torchvision, which this project's locks leave out.

vLLM defines the text model in one file with the model that sees, and the processors of that one import torchvision at the top.
None of it is called to serve text: while the file is imported, and only where torchvision is missing, empty modules stand in.
`register` names this file's classes to vLLM, whose processes each look a model up by the name of its architecture.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from transformers.utils.import_utils import is_torchvision_available
from vllm.model_executor.models.registry import ModelRegistry

ARCHITECTURES = ("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM")
STOOD_IN = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)


def register() -> None:
    """Tells vLLM where to find the text-only models, unless torchvision is installed and its own way works."""
    if importlib.util.find_spec("torchvision") is None:
        for name in ARCHITECTURES:
            ModelRegistry.register_model(name, f"{__name__}:{name}")


def _text_models() -> Any:
    """Returns vLLM's module, imported with the stand-ins where torchvision is missing."""
    stood_in: dict[str, ModuleType] = {}
    if not is_torchvision_available():  # transformers remembers the answer, so the stand-ins cannot deceive it
        stood_in = {name: ModuleType(name) for name in STOOD_IN}
        for name, module in stood_in.items():
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(stood_in[parent], child, module)
    sys.modules.update(stood_in)
    try:
        return importlib.import_module("vllm.model_executor.models.qwen3_5")
    finally:
        for name in stood_in:
            del sys.modules[name]


def __getattr__(name: str) -> Any:
    """Returns one of the models: vLLM imports this file and asks it for the class by name."""
    if name not in ARCHITECTURES:
        raise AttributeError(name)
    return getattr(_text_models(), name)

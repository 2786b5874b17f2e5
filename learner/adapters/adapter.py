"""Puts an adapter into a model: LoRA (arXiv 2106.09685) or DoRA (arXiv 2402.09353), in peft's layers.

    LoRA    y = W x + scaling B A x                              scaling = alpha / rank
    DoRA    y = m / |W + scaling B A| * (W x + scaling B A x)    the norm of each output's row, a constant for the gradient

W is the base model's and frozen, in the precision that the trainer computes in; A, B and m are trained, in float32 in every
precision. B begins at zero and m at the norms of W, so that the policy begins as the base model, which is also what it is with the
adapter switched off: the reference of a KL penalty needs no second model.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# peft annotates its layers in part only.

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from learner.adapters.names import IN_FILE, LORA_A, LORA_B, MAGNITUDE, OUTPUT_SCALE
from learner.checkpoint import CheckpointError, disk_errors
from learner.settings import LoraSettings
from learner.types import UnsupportedModel

ADAPTER = "default"  # peft's name of the only adapter there is
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


class Adapter:
    """Holds the adapter that it puts into a model, whose other parameters it freezes."""

    def __init__(self, model: Any, settings: LoraSettings, base: str, seed: int) -> None:
        """base: what the base model is loaded from, which the adapter's files name. Raises UnsupportedModel."""
        self.settings = settings
        targets = "all-linear" if isinstance(settings.targets, str) else list(settings.targets)
        self.config = LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
            r=settings.rank,
            lora_alpha=_whole(settings.scaling * settings.rank),  # type: ignore[arg-type] - peft takes any number
            lora_dropout=settings.dropout,
            target_modules=targets,
            use_dora=settings.dora,
        )
        model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # every rank draws the same, and nobody else's draws change
            torch.manual_seed(seed)
            try:
                inject_adapter_in_model(self.config, model, ADAPTER)
            except ValueError as error:
                raise UnsupportedModel(f"learner.lora.targets: {' '.join(str(error).split())[:300]}") from error
        self.config.target_modules = sorted(self.config.target_modules or ())  # type: ignore[assignment] - a set has no order
        self.config.inference_mode = True  # as peft's own files say: what loads them trains nothing unless it asks to
        # Any: peft's layers are modules too, which their common class does not say.
        self.layers: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
        for name, layer in self.layers:
            if not isinstance(layer.get_base_layer(), nn.Linear) and not _is_conv1d(layer):
                raise UnsupportedModel(
                    f"learner.lora.targets: {name} is a {type(layer.get_base_layer()).__name__}, and engines take adapters of "
                    "linear layers alone: leave it out"
                )
            layer.eval()  # without dropout, as the rest of the model
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            if (
                settings.dora
            ):  # peft took the norms in the base model's precision, and computes them in float32 from now on
                layer.lora_magnitude_vector[ADAPTER].weight.data = self._norms(layer)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields (name, parameter) of all that is trained, by the names of peft's file."""
        for name, layer in self.layers:
            yield f"{IN_FILE}{name}.{LORA_A}", layer.lora_A[ADAPTER].weight
            yield f"{IN_FILE}{name}.{LORA_B}", layer.lora_B[ADAPTER].weight
            if self.settings.dora:
                yield f"{IN_FILE}{name}.{MAGNITUDE}", layer.lora_magnitude_vector[ADAPTER].weight

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, tensor) of all that engines need of this version."""
        for name, layer in self.layers:
            yield f"{name}.{LORA_A}", layer.lora_A[ADAPTER].weight
            yield f"{name}.{LORA_B}", layer.lora_B[ADAPTER].weight
            if self.settings.dora:
                yield (
                    f"{name}.{OUTPUT_SCALE}",
                    layer.lora_magnitude_vector[ADAPTER].weight.detach() / self._norms(layer),
                )

    @contextmanager
    def off(self) -> Generator[None]:
        """Makes the model the base model for a while. peft's own switch would also take the gradients of what is trained away."""
        for _, layer in self.layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for _, layer in self.layers:
                layer._disable_adapters = False

    @contextmanager
    def dropout(self, seed: int, device: torch.device) -> Generator[None]:
        """Drops inputs of the adapter for a while, with random numbers that follow from `seed`."""
        modules = [module for _, layer in self.layers for module in (layer, layer.lora_dropout[ADAPTER])]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for module in modules:
                module.training = True
            try:
                yield
            finally:
                for module in modules:
                    module.training = False

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Writes a folder in peft's format, which peft loads into the base model; LoRA's transformers and vLLM load as well.

        weights: of `trained`, whole. Raises OSError.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with disk_errors(folder):
            save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / WEIGHTS_FILE)
        self.config.save_pretrained(str(folder))

    def load(self, folder: Path) -> None:
        """Reads what `write` wrote, before the model is divided among ranks. Raises CheckpointError."""
        file = folder / WEIGHTS_FILE
        try:
            saved = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {str(error)[:200]}") from None
        here = dict(self.trained())
        wrong = sorted(
            n for n in here.keys() | saved.keys() if n not in here or n not in saved or here[n].shape != saved[n].shape
        )
        if wrong:
            raise CheckpointError(
                f"{file} is of another adapter: {len(wrong)} tensors are not alike, such as {wrong[0]}"
            )
        with torch.no_grad():
            for name, parameter in here.items():
                parameter.copy_(saved[name])

    def _norms(self, layer: Any) -> Tensor:
        """Returns |W + scaling B A| [out] in float32, with the operations that peft takes it with, so that a layer that has learnt
        nothing is scaled by 1 exactly."""
        dora, a, b = layer.lora_magnitude_vector[ADAPTER], layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        with torch.no_grad():
            change = dora.get_lora_weight(lora_A=a, lora_B=b)
            return dora.get_weight_norm(layer.get_base_layer().weight.float(), change, layer.scaling[ADAPTER])


def _whole(number: float) -> float:
    """Returns the number, as an integer if it is one: others that read peft's files expect it."""
    return int(number) if number == int(number) else number


def _is_conv1d(layer: Any) -> bool:
    """Returns whether the base layer is GPT-2's linear layer, whose weight is transposed."""
    return type(layer.get_base_layer()).__name__ == "Conv1D"

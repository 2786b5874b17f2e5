"""Wraps a Hugging Face causal LM so that its forward returns token statistics instead of logits."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# transformers leaves parameters of from_pretrained, get_output_embeddings and others untyped.

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import meta_device_safe_creation_ops

from learner.families.logit_scale import logit_scale
from learner.families.router_balance import balance_losses, expert_counts, has_routers
from learner.logprobs import DEFAULT_CHUNK, token_logprobs
from learner.microbatches.layer_inputs import LayerInputs
from learner.microbatches.packed_attention import SDPA_PACKED, attend_packed, row_of
from learner.settings import LoraSettings
from learner.types import UnsupportedModel

if TYPE_CHECKING:
    from learner.adapters.adapter import Adapter

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_policy(
    path: str | Path,
    *,
    attention: str,
    checkpointing: bool,
    offload: bool = False,
    fp32_head: bool = False,
    empty: bool = False,
) -> Policy:
    """Loads any Hugging Face folder or id in float32 on the CPU.

    The engine casts it to the training precision, moves (ZeRO-3: partitions) it to its device and keeps float32 masters, so no
    device ever holds all of it in float32.

    attention: an `attn_implementation` of transformers ("sdpa", "eager", "flash_attention_2").
    offload: with checkpointing, what it keeps goes to host memory.
    fp32_head: whatever it is cast to later, the head's product is taken in float32.
    empty: the model without its weights, on the meta device: nothing but the configuration is read.
    """
    config = cast(PreTrainedConfig, AutoConfig.from_pretrained(path))
    attention = exact_attention(config, attention)
    model: Any
    if empty:
        with torch.device("meta"), meta_device_safe_creation_ops():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, attn_implementation=attention, low_cpu_mem_usage=True
        )
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        inputs = LayerInputs()
        for module in model.modules():
            # transformers checkpoints a layer only while it trains; its parts stay as they are, hence without dropout.
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
                if offload:
                    module._gradient_checkpointing_func = inputs.around(module._gradient_checkpointing_func)
    return Policy(model, fp32_head=fp32_head)


def exact_attention(config: PreTrainedConfig, wanted: str) -> str:
    """Returns the attention implementation to use: `wanted`, or "eager" where torch's sdpa would not compute this model.

    sdpa ignores a soft cap on attention scores (Gemma 2: 5e-3 nats), and transformers has none for some families (GPT-J, gpt-oss).
    """
    if wanted != "sdpa":
        return wanted
    family = cast(Any, AutoModelForCausalLM)._model_mapping.get(type(config), None)
    if getattr(config, "attn_logit_softcapping", None) is not None:
        reason = "sdpa ignores its soft cap on attention scores"
    elif family is not None and not getattr(family, "_supports_sdpa", True):
        reason = "transformers has no sdpa for it"
    else:
        return wanted
    log.warning("%s is trained with model.attention=eager: %s", config.model_type, reason)
    return "eager"


class Policy(nn.Module):
    """Computes (logp, entropy, kappa, entropy_grad_sq), float32 [N], of (tokens, positions, predict, targets, temperature).

    The head is called as a module, with the targets, so that whatever hooks hang on it (ZeRO-3 gathers its weight there) run
    around the chunked log-probs; its plain forward, hidden -> logits, stays for everything else.
    """

    def __init__(self, model: PreTrainedModel, chunk: int = DEFAULT_CHUNK, fp32_head: bool = False) -> None:
        super().__init__()
        self.model = model
        attend_packed(model)
        self.chunk, self.fp32_head = chunk, fp32_head
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UnsupportedModel(
                f"{type(model).__name__} has no linear output head: only causal language models can be trained"
            )
        self.logits = logit_scale(model.config)
        self.adapter: Adapter | None = None
        self._balance = 0.0
        self._expert_counts: Tensor | None = None  # of the forward passes without a gradient since `count_experts`
        self._expert_share: Tensor | None = None
        self._router_losses: Tensor | None = None  # of the last forward with a gradient
        self._plain_forward = head.forward
        head.forward = self._head_forward  # type: ignore[method-assign]

    @property
    def packs(self) -> bool:
        """Returns whether attention over packed rows is computed without a mask over all pairs of their tokens."""
        return self._attention not in ("eager", "sdpa")

    def shares(self, wanted: bool | None) -> bool:
        """Returns whether responses are to share their prompt's keys, as far as is known without measuring.

        wanted: learner.prefix_sharing; None: where packed rows are computed by sdpa anyway, which CUDA in half precision does
        not, and neither time nor memory was measured there.
        """
        config = cast(Any, self.model.config)
        able = self._attention == SDPA_PACKED and not getattr(config, "attention_chunk_size", None)
        if wanted is None:
            head = self.head.weight
            return able and not (head.is_cuda and head.dtype in (torch.float16, torch.bfloat16))
        return wanted and able

    @property
    def _attention(self) -> str:
        return cast(Any, self.model.config)._attn_implementation

    def slow(self, packing: bool | None) -> list[str]:
        """Returns a sentence where attention is computed in a way that takes much longer than it could."""
        family = self.model.config.model_type
        if packing and not self.packs:
            return [
                f"learner.packing=true is slow for {family}: its attention ({self._attention}) needs a mask over all pairs of a "
                "packed row's tokens; leave it out, or set learner.packing=false"
            ]
        if packing is False and self.packs:
            return [
                f"learner.packing=false is slow for {family} where responses differ much in length (1.2 to 1.4 times as long "
                "was measured): leave it out"
            ]
        return []

    @property
    def head(self) -> nn.Linear:
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)  # checked in __init__
        return head

    def _head_forward(
        self, hidden: Tensor, targets: Tensor | None = None, temperature: float = 1.0, statistics: bool = True
    ) -> Any:
        if targets is None:
            return self._plain_forward(hidden)
        head = self.head
        return token_logprobs(
            hidden,
            head.weight,
            targets,
            bias=head.bias,
            temperature=temperature,
            softcap=self.logits.softcap,
            scale=self.logits.factor,
            chunk=self.chunk,
            fp32_head=self.fp32_head,
            statistics=statistics,
        )

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        predict: Tensor,
        targets: Tensor,
        temperature: float,
        statistics: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the statistics of the targets. tokens, positions [B, T]; predict, targets [N]: see learner.types.MicroBatch.

        statistics: False leaves out kappa and entropy_grad_sq, which are empty then.
        No attention mask is passed: rows are padded on the right, and positions that restart mark packed trajectories.
        """
        decoder: Any = self.model.base_model
        routed = {"output_router_logits": True} if self._balance > 0 else {}
        with row_of(positions):
            out = decoder(input_ids=tokens, position_ids=positions, use_cache=False, **routed)
        if routed:
            self._follow_routers(out.router_logits, predict)
        return self.head(out.last_hidden_state.flatten(0, 1)[predict], targets, temperature, statistics)

    def adapt(self, settings: LoraSettings, base: str, seed: int) -> Adapter:
        """Freezes the model and puts a new adapter into it, which begins without effect. base: what the model was loaded from.
        Raises UnsupportedModel."""
        # peft takes a second to import, which other runs need not wait for. It imports bitsandbytes where that is installed, which
        # warns of kernels for inference that it does not find.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from learner.adapters.adapter import Adapter

        self.adapter = Adapter(self.model, settings, base, seed)
        return self.adapter

    def balance_experts(self, coefficient: float) -> None:
        """Prepares `router_loss`, 0 without this call. UnsupportedModel for a model without routers."""
        if coefficient and not has_routers(self.model):
            raise UnsupportedModel(
                "learner.router_aux_coefficient is for mixtures of experts whose routers transformers gives out, and "
                f"{self.model.config.model_type} is none: set it to 0"
            )
        self._balance = coefficient

    def _follow_routers(self, logits: tuple[Tensor, ...], predict: Tensor) -> None:
        """Counts the experts that a measuring pass chooses; keeps the losses of a training pass."""
        if not torch.is_grad_enabled():
            counts = expert_counts(logits, predict, self.model.config.num_experts_per_tok)
            self._expert_counts = counts if self._expert_counts is None else self._expert_counts + counts
        elif self._expert_share is not None:
            self._router_losses = balance_losses(logits, predict, self._expert_share)

    def count_experts(self) -> None:
        """Counts anew which experts the forward passes that follow choose, those without a gradient."""
        self._expert_counts = None

    def share_experts(self, total: Callable[[Tensor], Tensor]) -> None:
        """Ends the count, over all ranks: `router_loss` is taken with these shares. total: sums a tensor over ranks."""
        if self._expert_counts is not None:
            *counts, pairs = total(self._expert_counts).unbind()
            self._expert_share = torch.stack(counts) / pairs

    def router_loss(self, weight: Tensor) -> Tensor | float:
        """Returns the last forward's part in the update's load-balancing loss: see learner/families/router_balance.py.

        weight: the loss weights [N] of its tokens.
        """
        return 0.0 if self._router_losses is None else self._balance * (weight * self._router_losses).sum()

    def cast(self, dtype: torch.dtype) -> Policy:
        """Casts the parameters alone, as DeepSpeed does: Module.to would round the rotary frequencies as well."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        return self

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, tensor) of what engines are sent: of an adapted model the adapter alone, else `model_weights`."""
        yield from self.model_weights() if self.adapter is None else self.adapter.weights()

    def saved_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, tensor) of what a checkpoint has: of an adapted model the adapter alone, else `model_weights`."""
        yield from self.model_weights() if self.adapter is None else self.adapter.trained()

    def model_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, tensor) of the whole model, as transformers holds it: parameters, then buffers that are saved.

        A tied head appears once, under its embedding's name. A saved buffer is not trained by gradients (DeepSeek's and GLM's bias
        of each expert), but engine and checkpoint have it too.
        """
        yield from self.model.named_parameters()
        saved = self.model.state_dict().keys()
        yield from ((name, buffer) for name, buffer in self.model.named_buffers() if name in saved)

    def on_disk(self, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """Returns the tensors that the parameter `name` is in a checkpoint on disk, which are those that engines load.

        Mostly it is one tensor under its own name. transformers holds the experts of a mixture in one parameter, a checkpoint has
        them one by one: those are views of `tensor`, which may be on the meta device, where only names and shapes are wanted.
        Inverts what from_pretrained did, one parameter at a time, so that the model is never there twice.
        """
        if self.adapter is not None:
            return [(name, tensor)]
        parts: dict[str, Tensor] = revert_weight_conversion(self.model, {name: tensor})
        return list(parts.items())

"""Writes DeepSpeed's configuration: what it is told of ZeRO, precision and the sizes of its buffers. Without torch."""

from __future__ import annotations

from typing import Any

from learner.settings import EngineSettings, TrainerPrecision

# Elements of the flat copies in which gradients are reduced over ranks, and in which ZeRO-3 takes the optimiser's step. DeepSpeed's
# own 500 million and a billion are 2 and 4 GB in float32, whatever is gained by them: the larger part of what a rank of a sharded
# model would need beside its shares. orchestration/memory counts on it.
PIECE_ELEMENTS = 2**25


def deepspeed_config(
    settings: EngineSettings, trained: TrainerPrecision, loss_scale_power: int, pinned: bool
) -> dict[str, Any]:
    """Returns the configuration. trained: the precision of what is trained. pinned: page-lock what is offloaded, for a GPU."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": PIECE_ELEMENTS,
        "sub_group_size": PIECE_ELEMENTS,
    }
    config: dict[str, Any] = {
        # Micro-batches are made by tokens and the boundary is set by hand, so these two only have to be consistent.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": settings.grad_clip,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if settings.offload_optimiser:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
        config["zero_force_ds_cpu_optimizer"] = False  # DeepSpeed's own is compiled at first use
    if trained == "bf16":
        config["bf16"] = {"enabled": True}
    if trained == "fp16":
        # loss_scale 0: dynamic. Halved after a step whose gradient overflowed, doubled after 1,000 that did not.
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": loss_scale_power}
    return config

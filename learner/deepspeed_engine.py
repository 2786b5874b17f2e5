"""Wraps DeepSpeed in a small surface: backward, step, gather, save, load. The only file that imports it.

ZeRO 0-3; fp32, bf16, fp16 (float32 masters; fp16 with a dynamic loss scale). Of an adapted model the adapter alone is trained, in
float32, whatever the precision of the frozen weights: to DeepSpeed that is fp32. Gradients are averaged over ranks by DeepSpeed,
and our loss is already a global one, so `backward` multiplies it by the number of ranks.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# DeepSpeed has no stubs, and torch leaves the results of its collectives untyped.

from __future__ import annotations

import gc
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from learner.optimiser import adamw
from learner.rank_settings import RankPlace
from learner.settings import EngineSettings, TrainerPrecision
from learner.tracing.spans import span, traced
from learner.training_state import fragments, heap, shards
from learner.training_state.deepspeed_config import PIECE_ELEMENTS, deepspeed_config
from learner.training_state.host_copy import HostCopy
from learner.training_state.other_weights import OtherWeights
from learner.types import UnsupportedPrecision
from learner.weights.network import open_store, prefer_interface
from learner.weights.protocol import BUCKET_BYTES, TensorSpec, spec_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Split = Callable[[str, Tensor], Iterable[tuple[str, Tensor]]]


def _whole(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    return [(name, tensor)]


def untrainable(precision: TrainerPrecision, cuda: bool) -> str | None:
    """Returns why this device cannot train in `precision`; None if it can. Forward passes may work all the same."""
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    accelerator: Any = deepspeed.get_accelerator()
    if precision == "fp16" and not accelerator.is_fp16_supported():
        return "this device has no fp16 arithmetic"
    if precision == "bf16" and not accelerator.is_bf16_supported():
        return "this device has no bf16 arithmetic"
    return None


class DeepSpeedEngine:
    """Trains one rank's part of a model."""

    def __init__(
        self,
        placement: RankPlace,
        settings: EngineSettings,
        *,
        precision: TrainerPrecision,
        lr: float,
        adapted: bool = False,
        loss_scale_power: int = 16,
        listener: socket.socket | None = None,
    ) -> None:
        """Joins the group; `attach` gives it a model. The environment is this process's own: one rank, one process.

        precision: the one in use, whatever `settings` leave to the precision switch.
        lr: what the optimiser is built with, before `step` is given one. DeepSpeed's half-precision optimisers without ZeRO take
        a step without gradients when they are built, and with weight decay that step changes the weights.
        adapted: the model that is attached has an adapter, and its other parameters are frozen in `precision`.
        listener: holds the port of `placement` on rank 0, see learner/weights/network.py.
        """
        os.environ.update(RANK=str(placement.rank), LOCAL_RANK="0", WORLD_SIZE=str(placement.world_size))
        if reason := untrainable(precision, placement.cuda):
            raise UnsupportedPrecision(f"the trainer's precision is {precision} and {reason}: set another precision")
        import deepspeed  # here: it probes the accelerator and the environment at import
        import deepspeed.ops

        # DeepSpeed's shared-memory all-reduce for CPUs is compiled at first use: a minute, behind a lock file that a killed
        # process leaves held for ever. Gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

        self._deepspeed = deepspeed
        self.placement, self.settings = placement, settings
        self.precision, self._lr, self._loss_scale_power = precision, lr, loss_scale_power
        self.dtype = DTYPES[precision]  # of the parameters; an adapter's are float32
        self._trained: TrainerPrecision = "fp32" if adapted else precision
        self._adapted, self._others = adapted, OtherWeights(adapted, placement.rank)
        self._partitioned: Any = None  # a parameter that is, of which DeepSpeed takes others after
        self.done = 0  # forward passes, backward passes and steps: it grows as long as work makes progress
        self._host = HostCopy(self._moved)
        self.device = torch.device("cuda", 0) if placement.cuda else torch.device("cpu")
        if placement.cuda:
            torch.cuda.set_device(self.device)
        self._join(listener)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # finds the group, and wraps it

    def _join(self, listener: socket.socket | None) -> None:
        """Joins the group of all ranks; a learner that follows another in this process finds it joined."""
        place, limit = self.placement, timedelta(seconds=self.placement.timeout_s)
        if torch.distributed.is_initialized():
            return
        prefer_interface(place.master_addr)  # DeepSpeed makes groups of its own later
        store = open_store(
            place.master_addr,
            place.master_port,
            place.world_size,
            root=place.rank == 0,
            timeout_s=place.timeout_s,
            listener=listener,
        )
        torch.distributed.init_process_group(
            "nccl" if place.cuda else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=limit,
            # Subgroups are split off a group that is bound to its device; a single rank has nobody to split from.
            device_id=self.device if place.cuda and place.world_size > 1 else None,
        )

    def partition(self, parameter: nn.Parameter) -> None:
        """Leaves this rank its part of a whole parameter, of rank 0's values. ZeRO-3 alone; a collective, before `attach`."""
        self.done += 1
        if self._partitioned is None:
            holder = nn.Module()
            holder.parameter = self._partitioned = parameter
            self._deepspeed.zero.Init(module=holder, config_dict_or_path=self._config(), dtype=self.dtype)
        else:  # as the first one was, without reading the configuration again
            self._partitioned.convert_to_zero_parameters([parameter])

    def attach(self, model: nn.Module) -> None:
        s = self.settings
        self.model = model
        dimensions = {p: len(getattr(p, "ds_shape", p.shape)) for p in model.parameters() if p.requires_grad}
        decay = [p for p, n in dimensions.items() if n >= 2]
        rest = [p for p, n in dimensions.items() if n < 2]
        groups = [{"params": decay, "weight_decay": s.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        # A client optimizer: one named in the config is compiled at first use, which takes minutes on a CPU.
        optimizer = adamw.build(s, [g for g in groups if g["params"]], self._lr, self.placement.cuda)
        engine: Any
        engine, *_ = self._deepspeed.initialize(model=model, optimizer=optimizer, config=self._config())
        self.engine = engine
        # Without ZeRO the size is an argument's default, that no setting reaches.
        engine.allreduce_gradients = partial(engine.allreduce_gradients, bucket_size=PIECE_ELEMENTS)
        if (scaler := getattr(engine.optimizer, "loss_scaler", None)) is not None:
            # ZeRO's scaler would end the process with a bare Exception; the learner has a sentence for an exhausted scale.
            scaler.raise_error_at_min_scale = False

    def freeze(self, model: nn.Module) -> Any:
        """Sets up a second model for forward passes alone, in the trained one's precision and on its device; returns it.

        Under ZeRO-3 it is partitioned as well, and its forward is a collective.
        """
        model.requires_grad_(False).eval()
        if self.settings.zero_stage < 3:
            for parameter in model.parameters():  # these alone, as DeepSpeed does: buffers keep their own precision
                parameter.data = parameter.data.to(self.dtype)
            return model.to(self.device)
        engine, *_ = self._deepspeed.initialize(model=model, config=self._config())
        return engine

    def _config(self) -> dict[str, Any]:
        return deepspeed_config(self.settings, self._trained, self._loss_scale_power, pinned=self.placement.cuda)

    @traced("forward")
    def __call__(self, *inputs: Any) -> Any:
        self.done += 1
        return self.engine(*inputs)

    def outside_updates(self, *inputs: Any) -> Any:
        """Runs the model's forward for a gradient that torch.autograd.grad takes and no update has.

        DeepSpeed hangs the bookkeeping of an update's backward pass on every tensor that the model's forward returns; here that is
        a function, in which it looks for none. The hooks that gather weights under ZeRO-3 are the modules' own and run as ever.
        """
        self.done += 1
        forward = self.model.forward

        def unseen(*inputs: Any) -> Any:
            outputs = forward(*inputs)
            return lambda: outputs

        self.model.forward = unseen
        try:
            return self.model(*inputs)()
        finally:
            del self.model.forward

    @property
    def keeps_graphs(self) -> bool:
        """Returns whether several forward passes may come before their backward passes: ZeRO's hooks count on pairs."""
        return self.settings.zero_stage == 0

    def boundary(self, last: bool) -> None:
        """Tells DeepSpeed, before a micro-batch's forward (or, if that was before, backward), whether it is the update's last."""
        self.engine.set_gradient_accumulation_boundary(last)

    @traced("backward")
    def backward(self, loss: Tensor) -> None:
        self.done += 1
        self.reload()
        scale = 1.0
        if self.settings.zero_stage == 0 and self.loss_scale is not None:
            # Without ZeRO, DeepSpeed divides fp16 gradients by the loss scale and leaves it to others to multiply the loss by it.
            scale = self.loss_scale
        self.engine.backward(loss * (self.placement.world_size * scale))
        self.trim()

    @property
    def loss_scale(self) -> float | None:
        """Returns what fp16's next loss is multiplied by before backward; None in the other precisions."""
        return float(self.engine.optimizer.loss_scale) if self._trained == "fp16" else None

    @traced("step")
    def step(self, lr: float) -> float:
        """Takes the optimiser step at learning rate `lr`; returns the global gradient norm before clipping.

        A step that fp16's loss scaler skipped returns nan: the gradient overflowed and the scale was lowered.
        """
        self.done += 1
        self.reload()
        scale = self.loss_scale or 1.0  # the step may change it
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        if self.settings.zero_stage == 0 and self._trained == "fp32":
            # No optimizer of DeepSpeed's own here, hence no norm; the gradients are whole and already averaged over ranks.
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
            self.engine.step()
        else:
            self.engine.step()
            norm = self.engine.get_global_grad_norm()
            if norm is not None and self.settings.zero_stage == 0:
                norm = norm / scale  # the optimiser without ZeRO reports the scaled gradient's norm
        return float(norm) if norm is not None and self.engine.was_step_applied() else math.nan

    def reset_optimiser(self) -> None:
        """Moments and step counts back to zero, as a new optimiser has them; weights and loss scale stay. Every rank its part."""
        self.reload()
        optimizer = self.engine.optimizer
        adamw.reset(getattr(optimizer, "optimizer", optimizer))  # DeepSpeed's wrappers hold AdamW

    def all_reduce(self, value: Tensor, op: Literal["sum", "max"]) -> Tensor:
        """Reduces over all ranks and returns the result. CPU tensors travel through the device where the backend needs that."""
        if self.placement.world_size == 1:
            return value
        reduce_op = torch.distributed.ReduceOp.SUM if op == "sum" else torch.distributed.ReduceOp.MAX
        on_device = value.to(self.device)
        torch.distributed.all_reduce(on_device, op=reduce_op)
        return on_device.to(value.device)

    def all_gather(self, value: Tensor) -> list[Tensor]:
        """Gathers tensors [n_r, ...] of every rank, in rank order; the n_r may differ."""
        if self.placement.world_size == 1:
            return [value]
        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.placement.world_size)]
        torch.distributed.all_gather(counts, torch.tensor([len(value)], device=self.device))
        longest = max(int(c) for c in counts)
        padded = value.new_zeros((longest, *value.shape[1:]))
        padded[: len(value)] = value
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
        return [part[: int(c)] for part, c in zip(parts, counts, strict=True)]

    def own_part(self, parameter: nn.Parameter, whole: Tensor | None = None) -> Tensor:
        """Returns this rank's share of a parameter, or of a tensor of its full shape, flat; those of all ranks make the whole."""
        rank, shard = self.placement.rank, getattr(parameter, "ds_tensor", None)
        if shard is None:
            flat = (parameter.detach() if whole is None else whole).flatten()
            return flat.tensor_split(self.placement.world_size)[rank]
        size = shard.numel()  # ZeRO-3: as DeepSpeed divides it, the last share padded
        length = max(0, min(size, math.prod(getattr(parameter, "ds_shape", ())) - rank * size))
        return shard.detach().flatten()[:length] if whole is None else whole.flatten()[rank * size :][:length]

    def zeros_like(self, parameter: nn.Parameter) -> Tensor:
        """Returns zeros of the parameter's full shape."""
        return torch.zeros(getattr(parameter, "ds_shape", parameter.shape), dtype=parameter.dtype, device=self.device)

    def full_weights(
        self, weights: Iterator[tuple[str, Tensor]], split: Split = _whole, bucket_bytes: int = BUCKET_BYTES
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, full tensor) in order, at rank 0; each is valid until the next is asked for.

        split: what becomes of a parameter once it is whole: several tensors, for one that others know in parts.

        Under ZeRO-3 this is a collective, about `bucket_bytes` of parameters at a time, and every rank has to go through all of it,
        whatever becomes of what rank 0 does with the tensors: the others wait for it in the next gather, and yield nothing.
        """
        if self.settings.zero_stage < 3:
            yield from (part for name, parameter in weights for part in split(name, parameter.detach()))
            return
        for group in fragments.grouped(weights, bucket_bytes):
            self.done += len(group)
            with self._deepspeed.zero.GatheredParameters([p for _, p in group], modifier_rank=None):
                if self.placement.rank == 0:
                    for name, parameter in group:
                        yield from split(name, parameter.detach())

    def whole_weights(self, weights: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Returns all full tensors by name, at rank 0. A collective under ZeRO-3, which takes one set of them in host memory."""
        staged = self.settings.zero_stage == 3
        return {name: t.to("cpu", copy=True) if staged else t for name, t in self.full_weights(weights)}

    def full_specs(self, weights: Iterator[tuple[str, Tensor]], split: Split = _whole) -> list[TensorSpec]:
        """Returns names, full shapes and dtypes of what `full_weights` yields, without a gather."""
        shapes = ((n, torch.empty(getattr(p, "ds_shape", p.shape), dtype=p.dtype, device="meta")) for n, p in weights)
        return [spec_of(*part) for name, shape in shapes for part in split(name, shape)]

    def scale_weights(self, factor: float) -> None:
        """Multiplies the weights, until the inverse factor is given: see learner/training_state/other_weights.py."""
        self._others.scale(self.model.parameters(), factor)

    def save(self, folder: Path) -> None:
        """Saves masters, moments and loss scale, each rank its part. Waits for no other rank. Raises OSError."""
        rank, world = self.placement.rank, self.placement.world_size
        shards.write(folder, self._fragments(), rank, world if self.settings.zero_stage == 0 else 1, self._moved)
        if rank == 0:
            shards.write_scaler(folder, fragments.scaler_state(self.engine.optimizer))

    def load(self, folder: Path) -> None:
        """Loads what any number of ranks saved at any ZeRO stage, into an engine whose model has the weights of that moment."""
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        shards.read(folder, self._fragments(), names, self._moved)
        fragments.set_scaler_state(self.engine.optimizer, shards.read_scaler(folder))

    def _moved(self) -> None:
        self.done += 1

    @traced("offload")
    def offload(self) -> None:
        """Moves masters, moments and gradients to host memory until `reload`, or the first call that needs them.

        The weights stay, for transfers and forward passes. Every rank its part; not a collective.
        """
        if not self._host.away:
            self._host.take(fragments.beside_weights(self._fragments(), self.engine.optimizer, self.model.parameters()))
        self._empty_cache()  # also of activations: another process on this GPU cannot have what torch keeps for later

    def reload(self) -> None:
        """Brings back what `offload` moved; nothing where nothing was."""
        if self._host.away:
            with span("reload"):
                self._host.give_back()

    def trim(self) -> None:
        """Gives back what passes left free in a CPU's heap where it would grow with every micro-batch, see heap.py."""
        if not self.placement.cuda and (self._adapted or self.settings.zero_stage == 3):
            heap.trim()

    def _empty_cache(self) -> None:
        if self.placement.cuda:
            torch.cuda.empty_cache()

    def _fragments(self) -> list[fragments.Fragment]:
        self.reload()
        return fragments.fragments(
            self.engine.optimizer, self.model.named_parameters(), self.settings.zero_stage, self.placement.rank
        )

    def release(self) -> None:
        """Frees the model and the optimiser; the process group stays for the next engine of this process."""
        self._host = HostCopy(self._moved)
        self.engine.destroy()
        self._partitioned = None
        del self.engine, self.model
        gc.collect()  # DeepSpeed's hooks and its engine refer to each other
        self._empty_cache()

    def close(self) -> None:
        self.engine.destroy()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

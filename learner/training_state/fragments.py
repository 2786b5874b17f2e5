"""Finds where an optimiser of DeepSpeed's holds the float32 masters and AdamW's moments of each parameter.

kind                       precision, ZeRO stage     masters
AdamW itself               fp32, 0                   the parameters themselves
FP16_UnfusedOptimizer      bf16 and fp16, 0          a copy of each parameter
ZeRO-1/2, BF16_Optimizer   1 and 2                   this rank's range of one flat tensor a group
ZeRO-3                     3                         this rank's range of every parameter, flat, several in one tensor
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# What DeepSpeed hangs on parameters and optimisers has no types.

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from learner.optimiser.adamw import StepCount, range_of, values_of
from learner.optimiser.moments import EightBit, Plain, Values

SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True, slots=True)
class Fragment:
    """Holds the range of one parameter, counted in its flattened elements, that an optimiser of this rank has.

    values    "master", "exp_avg", "exp_avg_sq" -> [n] elements of what the optimiser works with: writing to them loads it
    steps     AdamW's count of the tensor in which the range lies, which may be shared with other fragments
    """

    name: str
    size: int  # elements of the whole parameter
    start: int
    values: Mapping[str, Values]
    steps: StepCount

    @property
    def length(self) -> int:
        """Returns the number of elements of the range."""
        return self.values["master"].length


def fragments(optimizer: Any, parameters: Iterable[tuple[str, nn.Parameter]], stage: int, rank: int) -> list[Fragment]:
    """Returns what this rank holds. At stage 0 that is all of every parameter.

    parameters: those of the model in its own order, with names that are the same on every rank and at every stage.
    """
    adam = getattr(optimizer, "optimizer", optimizer)
    copies = (
        {
            id(model): master
            for model_group, master_group in zip(
                getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=True
            )
            for model, master in zip(model_group, master_group, strict=True)
        }
        if stage == 0
        else {}
    )
    found: list[Fragment] = []
    whole: dict[int, dict[str, Plain | EightBit]] = {}  # of every tensor that is stepped, by identity

    def fragment(name: str, size: int, start: int, holder: Tensor, offset: int, length: int) -> Fragment:
        if id(holder) not in whole:
            whole[id(holder)] = {"master": Plain(holder.detach().view(-1)), **values_of(adam, holder)}
        values = {key: range_of(flat, offset, length) for key, flat in whole[id(holder)].items()}
        return Fragment(name, size, start, values, StepCount(adam.state[holder]))

    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        size = math.prod(getattr(parameter, "ds_shape", parameter.shape))
        if stage == 0:
            master = copies.get(id(parameter), parameter)
            found.append(fragment(name, size, 0, master, 0, size))
        elif stage == 3:
            group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            share = getattr(parameter, "ds_tensor").numel()  # noqa: B009 - DeepSpeed's, unknown to the types
            length = max(0, min(share, size - rank * share))  # the last shares are padded
            if length:
                flat = optimizer.fp32_partitioned_groups_flat[group]
                found.append(fragment(name, size, rank * share, flat, offset, length))
        elif (mapping := getattr(parameter, "_hp_mapping", None)) is not None:
            flat = adam.param_groups[mapping.param_group_index]["params"][0]
            at = mapping.hp_fragment_address
            found.append(fragment(name, size, mapping.lp_fragment_address.start, flat, at.start, at.numel))
    return found


def beside_weights(found: Iterable[Fragment], optimizer: Any, weights: Iterable[nn.Parameter]) -> list[Tensor]:
    """Returns masters, moments and gradients, but for what shares its memory with weights: fp32 masters without ZeRO do.

    found: `fragments` of this rank. Of gradients there is only what DeepSpeed keeps between two updates, to fill it anew.
    """
    adam, parameters = getattr(optimizer, "optimizer", optimizer), list(weights)
    masters = [master for group in adam.param_groups for master in group["params"]]
    held: list[Any] = [tensor for fragment in found for values in fragment.values.values() for tensor in values.stored]
    held += [holder.grad for holder in (*parameters, *masters)]
    held.append(getattr(optimizer, "grad_partitions_flat_buffer", None))  # ZeRO-3
    held += getattr(optimizer, "fp32_groups_gradients_flat", ())  # BF16_Optimizer
    parts = [getattr(parameter, "ds_tensor", None) for parameter in parameters]  # ZeRO-3: this rank's
    kept = {t.untyped_storage().data_ptr() for t in (*parameters, *parts) if t is not None}
    return [t for t in held if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in kept]


def grouped(weights: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Divides parameters into groups of up to `limit` bytes, counted whole; one that is larger is a group by itself."""
    group: list[tuple[str, Tensor]] = []
    size = 0
    for name, parameter in weights:
        nbytes = math.prod(getattr(parameter, "ds_shape", parameter.shape)) * parameter.element_size()
        if group and size + nbytes > limit:
            yield group
            group, size = [], 0
        group.append((name, parameter))
        size += nbytes
    if group:
        yield group


def scaler_state(optimizer: Any) -> dict[str, float]:
    """Returns the state of fp16's loss scaler; nothing in the other precisions."""
    scaler = _scaler(optimizer)
    return {key: getattr(scaler, key) for key in SCALER if isinstance(getattr(scaler, key, None), int | float)}


def set_scaler_state(optimizer: Any, state: dict[str, float]) -> None:
    """Restores what `scaler_state` returned. What this optimiser's scaler does not count is left out."""
    scaler = _scaler(optimizer)
    for key in SCALER:
        if key in state and hasattr(scaler, key):
            setattr(scaler, key, state[key])


def _scaler(optimizer: Any) -> Any:
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)

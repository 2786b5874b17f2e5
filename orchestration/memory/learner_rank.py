"""Computes what a learner's rank holds, phase by phase: learner/deepspeed_engine.py, learner/ledger/step_effect.py.

    predict   the whole gradient of the mean entropy is there once, and becomes this rank's share; no other gradient is
    train     gradients of the update, and the flat copies in which they are reduced; activations
    step      what DeepSpeed and AdamW take beside masters, moments and gradients

What stays is there in all of them: weights, masters, moments, the reference, and from `predict` to the end of the updates the
ledger's shares of that gradient and of the weights before. On a GPU the phase that needs most decides, since torch's allocator
gives one phase's memory to the next. On a CPU activations are small pieces of glibc's heap, which does not shrink while anything
above them is in use: they stay resident in the step, and its copies come on top. With an adapter or ZeRO-3 they are given back
before (learner/training_state/heap.py).
"""

from __future__ import annotations

from learner.settings import EngineSettings, LearnerSettings
from learner.training_state.deepspeed_config import PIECE_ELEMENTS
from orchestration.config.run_config import RunConfig
from orchestration.memory.activations import head_bytes, heap_gaps, inputs_on_host, pass_bytes
from orchestration.memory.model_size import ModelSize
from orchestration.memory.need import Need

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "float32": 4, "bfloat16": 2, "float16": 2}
MASTER = MOMENT = FLOAT = 4  # bytes an element; of moments AdamW has two
BLOCK = 256  # elements that share a float32 scale where a moment has 8 bits: learner/optimiser/moments.py
# Of an actor that imports bitsandbytes, beside the other libraries: resident bytes. peft does that, too, where it is installed.
BITSANDBYTES = 50 * 2**20
# DeepSpeed's sizes for what ZeRO-3 keeps gathered (stage3_max_live_parameters) and gathers ahead (stage3_prefetch_bucket_size).
LIVE, AHEAD = 10**9, 5 * 10**7  # elements
# Of an actor that has imported torch, transformers, DeepSpeed and Ray, before it has a model: resident bytes, in a run on a CPU.
# Without Ray they are 480 MiB: tests/benchmarks/memory.py, which takes what it measures.
LIBRARIES = 560 * 2**20


def ceil_div(total: int, parts: int) -> int:
    return -(-total // parts)


def rank_need(config: RunConfig, model: ModelSize) -> Need:
    """Returns what the first rank needs while it trains; stages of the run are not looked at."""
    c, width = config.learner, BYTES[config.trainer_precision]
    on_gpu, rank = c.gpus > 0, None if c.lora is None else c.lora.rank
    fixed = _fixed(config, model)
    phases = _phases(config, model)
    acts = pass_bytes(model, width, c.micro_batch_tokens, rank, c.gradient_checkpointing, c.offload_activations)
    if on_gpu:
        kept = {"predict": acts, "train": acts, "step": 0}
    else:
        gaps = 0 if rank is None else heap_gaps(model, width, c.micro_batch_tokens, c.gradient_checkpointing)
        kept = dict.fromkeys(phases, acts + gaps)
        if rank is not None or c.zero_stage == 3:
            kept["step"] = 0
    most = max(phases, key=lambda name: sum(phases[name].values()) + kept[name])
    sent = _sent(config, model)
    libraries = LIBRARIES + (BITSANDBYTES if c.optimiser_bits == 8 or rank is not None else 0)
    parts = {**({} if on_gpu else {"libraries": libraries}), **fixed, **phases[most], "transfer buffers": sent}
    if not on_gpu:
        return Need("learner rank", c.ranks, on_gpu, parts, kept[most], first_only=sent)
    reading = FLOAT * model.parameters  # by the first rank alone, in float32: learner/training_state/one_read.py
    beside = {"libraries": libraries, "optimiser": _offloaded(config, model), "the model while it is read": reading}
    away = inputs_on_host(model, width, c.micro_batch_tokens) if c.offload_activations else 0
    return Need("learner rank", c.ranks, on_gpu, parts, kept[most], beside, away, first_only=reading)


def trained_elements(config: RunConfig, model: ModelSize) -> int:
    """Returns how many elements the optimiser trains: the adapter's, or all."""
    return adapter_elements(config, model) or model.parameters


def adapter_elements(config: RunConfig, model: ModelSize) -> int:
    """Returns how many elements the adapter has; 0 without one."""
    lora = config.learner.lora
    if lora is None:
        return 0
    return model.adapter(lora.rank, lora.dora, None if lora.targets == "all-linear" else lora.targets)


def _fixed(config: RunConfig, model: ModelSize) -> dict[str, int]:
    """Returns what is there from the first update to the end of the run."""
    c, b, p = config.learner, BYTES[config.trainer_precision], model.parameters
    adapter, stage, ranks = adapter_elements(config, model), c.zero_stage, c.ranks
    trained, size = (adapter, FLOAT) if adapter else (p, b)
    share = ceil_div(trained, ranks)
    held = b * (ceil_div(p, ranks) if stage == 3 else p)
    # Without ZeRO float32 weights are trained themselves; else DeepSpeed has a copy of its share. At stage 3 it would need none in
    # float32, and copies all the same: it compares a torch.device with the device's name (stage3.py, _create_fp32_partitions).
    masters = 0 if size == FLOAT and not stage else MASTER * (share if stage else trained)
    if c.offload_optimiser:
        masters = 0
    reference = held if not adapter and holds_reference(config) else 0
    ledger = (size + FLOAT) * share if c.ledger_share else 0
    return {
        "weights": held,
        **({"adapter": FLOAT * (share if stage == 3 else adapter)} if adapter else {}),
        "masters": masters,
        "moments": 0 if c.offload_optimiser else moment_bytes(c, share if stage else trained),
        "reference": reference,
        "ledger": ledger,
    }


def moment_bytes(settings: EngineSettings, elements: int) -> int:
    """Returns the bytes of AdamW's two moments. In 8 bits small tensors stay in 32, which is too little to plan for."""
    return 2 * (elements + FLOAT * ceil_div(elements, BLOCK) if settings.optimiser_bits == 8 else MOMENT * elements)


def _offloaded(config: RunConfig, model: ModelSize) -> int:
    """Returns what is in host memory of an offloaded optimiser: masters, moments and gradients of a rank's share, as float32."""
    share = ceil_div(trained_elements(config, model), config.learner.ranks)
    return (MASTER + 2 * MOMENT + FLOAT) * share if config.learner.offload_optimiser else 0


def _phases(config: RunConfig, model: ModelSize) -> dict[str, dict[str, int]]:
    """Returns what each phase takes beside what stays, without activations."""
    c, b = config.learner, BYTES[config.trainer_precision]
    adapter, stage, on_gpu = adapter_elements(config, model), c.zero_stage, c.gpus > 0
    trained, size = (adapter, FLOAT) if adapter else (model.parameters, b)
    share = ceil_div(trained, c.ranks)
    largest = min(trained, model.hidden * model.vocabulary if not adapter else PIECE_ELEMENTS)
    # A single rank has nothing to gather: DeepSpeed lends it the shares themselves.
    gathered = b * min(model.parameters, LIVE + AHEAD) if stage == 3 and c.ranks > 1 else 0
    head = head_bytes(model, b, c.micro_batch_tokens, on_gpu, trained=not adapter)
    gradients = size * (share if stage >= 2 else trained)
    bucket = size * min(trained, PIECE_ELEMENTS + (largest if not stage else 0))
    # The part that comes back of ZeRO's reduction is a second copy, beside the buffer.
    reduced = bucket
    # What gloo gathers it gathers flat and copies, and it reduces a copy of what it scatters (torch's ProcessGroupGloo).
    apart = stage == 3 and c.ranks > 1 and not on_gpu
    if apart:
        gathered, reduced = gathered + b * min(model.parameters, AHEAD), reduced + bucket
    # ZeRO's buffer for gradients is there in every phase, and of the whole size however little is trained.
    buffer = {"reduce buffer": size * PIECE_ELEMENTS if stage else 0}
    always = {"gathered weights": gathered, "head": head, **buffer}
    flat = {"gradients": gradients if stage == 3 else 0}  # ZeRO-3 keeps its share of them between updates
    phases = {
        "train": {**always, "gradients": gradients, "reduced gradients": reduced},
        "step": {
            **buffer,
            **({} if on_gpu else {"gathered weights": gathered}),
            "gradients": gradients,
            "optimiser step": _step(c, share if stage else trained, largest, size),
        },
    }
    if c.ledger_share:
        phases["predict"] = {**always, **flat, "entropy's gradient": size * trained}
    return phases


def _step(c: LearnerSettings, share: int, largest: int, size: int) -> int:
    """Returns what a step takes: gradients as float32 and flat where DeepSpeed has masters, and temporary tensors of AdamW.

    On a GPU AdamW is fused and has none. On a CPU they are of one tensor at a time: a parameter, or what DeepSpeed made flat. Torch
    has two of them; bitsandbytes has five, both moments in float32 among them.
    """
    if c.offload_optimiser:
        return 0  # what it takes is in host memory
    flat = min(share, PIECE_ELEMENTS) if c.zero_stage == 3 else share
    copied = FLOAT * flat if c.zero_stage or size < FLOAT else 0
    at_once = flat if c.zero_stage else largest
    return copied + (0 if c.gpus else (5 if c.optimiser_bits == 8 else 2) * FLOAT * at_once)


def _sent(config: RunConfig, model: ModelSize) -> int:
    """Returns what the first rank sends weights out of: two buckets, or on a CPU a copy of all in memory that engines map."""
    adapter = adapter_elements(config, model)
    everything = FLOAT * adapter if adapter else BYTES[config.trainer_precision] * model.parameters
    if config.weights.shared_memory and not config.learner.gpus:
        return everything
    return 2 * min(config.weights.bucket_mb * 2**20, everything)


def holds_reference(config: RunConfig) -> bool:
    """Returns whether some stage of the run has a KL penalty."""
    return any(config.at_stage(i).objective.kl.coefficient > 0 for i in range(max(1, len(config.stages))))

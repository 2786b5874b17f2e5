"""Counts what forward and backward passes keep: the tensors that autograd saves in a decoder layer, and the head's logits.

Of a layer with an MLP of three matrices, RMS norms and rotary positions, in widths of hidden state H, queries Q, keys K and MLP I,
torch's autograd saves, as `tests/orchestration/memory/test_activations.py` counts them tensor by tensor:

    norms       2 H as float32, the inputs, and 2 H before their weights are multiplied
    attention   H, the input of q, k, v; 3 Q: queries, output, and that in the order of the row; 2 K
    MLP         H and 4 I: its input, gate, activation, up, and their product
    q, k norms  Q + K as float32, and before their weights are multiplied (Qwen3, Gemma 3)

An adapter's frozen layers keep no input of a norm's weight, and each matrix keeps its own input in float32: in bf16 a copy.
"""

from __future__ import annotations

import math

from orchestration.memory.model_size import ModelSize

KEPT_LOGITS = 2**26  # that the head keeps for backward on a CPU: learner/head/blocks.py
BLOCK = 2**26  # elements of a block of logits on a GPU: learner/head/fused.py
FLOAT = 4
# Inputs of layers that are on the GPU at once where they are kept on the host: the present layer's, and one that goes or comes
# meanwhile (learner/microbatches/layer_inputs.py).
ON_THEIR_WAY = 2


def layer_bytes(model: ModelSize, width: int, rank: int | None) -> int:
    """Returns what a layer keeps of one token. width: bytes of an activation. rank: of the adapter; None without."""
    h, q, k, inner = model.hidden, model.query_width, model.key_width, model.inner
    norms = 2 * h * FLOAT + 2 * FLOAT
    normed_heads = (q + k) * FLOAT if model.head_norms else 0
    attention = 2 * q * width + 2 * k * width + FLOAT * q // max(1, model.head_width)
    if rank is None:
        scaled = 2 * h * width + ((q + k) * width if model.head_norms else 0)
        return norms + normed_heads + scaled + attention + (2 * h + q + 4 * inner) * width
    copies = 5 if width < FLOAT else 2  # q, k, v, gate, up: each has its own
    inputs = (copies * h + q + inner) * FLOAT
    matrices = sum(count for *_, count in model.matrices) // max(1, model.layers)
    return norms + normed_heads + attention + inputs + 3 * inner * width + matrices * rank * FLOAT


def pass_bytes(
    model: ModelSize, width: int, tokens: int, rank: int | None, recompute: bool, offload: bool = False
) -> int:
    """Returns what is kept of a micro-batch, without the head.

    recompute: gradient checkpointing, one layer at a time. offload: of the layers' inputs those alone that are on their way.
    """
    layer = tokens * layer_bytes(model, width, rank)
    inputs = tokens * model.hidden * width
    kept = min(model.layers, ON_THEIR_WAY) if offload else model.layers
    layers = kept * inputs + layer if recompute else model.layers * layer
    return layers + inputs + 2 * tokens * model.hidden * FLOAT  # behind them the last norm, and the head's input


def inputs_on_host(model: ModelSize, width: int, tokens: int) -> int:
    """Returns what the layers' inputs of a micro-batch take of host memory: torch page-locks powers of two."""
    return model.layers * 2 ** math.ceil(math.log2(tokens * model.hidden * width))


def heap_gaps(model: ModelSize, width: int, tokens: int, recompute: bool) -> int:
    """Returns what glibc's heap loses in the forward pass of an adapted model on a CPU.

    Each adapted matrix has two temporary results of its output's size, the frozen layer's and the adapter's. What A makes of the
    input is small, is kept, and is put into the space of one that was freed: the rest of it is too small for the next one. Forward
    passes of SmolLM2-135M with rank 32 left 573 MiB free and unused beside 804 in use at 512 tokens, 176 beside 326 at 128.
    """
    outputs = sum(rows * count for _, rows, _, count in model.matrices)
    return 2 * tokens * width * outputs // (model.layers if recompute else 1)


def head_bytes(model: ModelSize, width: int, tokens: int, on_gpu: bool, trained: bool) -> int:
    """Returns what the head takes at most of a micro-batch's tokens, most of which are responses'.

    trained: the gradient of its weight, and where that is the embedding's too, one of each before they are added.
    """
    logits = BLOCK * width if on_gpu else FLOAT * min(KEPT_LOGITS, tokens * model.vocabulary)
    weight = model.hidden * model.vocabulary * width
    return logits + (weight * (2 if model.tied else 1) if trained else 0)

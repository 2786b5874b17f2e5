"""Names the tensors of an adapter: on the way to engines, and in peft's file. Without torch.

Of the linear layer `model.layers.0.self_attn.q_proj`, W [out, in]:

    model.layers.0.self_attn.q_proj.lora_A.weight          [rank, in]
    model.layers.0.self_attn.q_proj.lora_B.weight          [out, rank]
    model.layers.0.self_attn.q_proj.lora_magnitude_vector  [out]    DoRA, as peft's file has it
    model.layers.0.self_attn.q_proj.lora_output_scale      [out]    DoRA, as engines take it: magnitude / |W + scaling B A|
"""

from __future__ import annotations

LORA_A, LORA_B = "lora_A.weight", "lora_B.weight"
MAGNITUDE, OUTPUT_SCALE = "lora_magnitude_vector", "lora_output_scale"
IN_FILE = "base_model.model."  # before every name in peft's files
_KINDS = (LORA_A, LORA_B, MAGNITUDE, OUTPUT_SCALE)


def split_name(name: str) -> tuple[str, str]:
    """Returns the linear layer and what the tensor is of its adapter. Raises ValueError for a name of something else."""
    for kind in _KINDS:
        if name.endswith(f".{kind}"):
            return name.removesuffix(f".{kind}"), kind
    raise ValueError(f"{name} is not the name of an adapter's tensor")

"""Compiles the head's Triton kernels for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from learner.head import fused, kernels

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Shared memory that a block may take, in KB, and processors, of A100, RTX 4090 and H100.
DEVICES = {80: (163, 108), 89: (99, 128), 90: (227, 132)}


def tiles_of(capability: int, dtype: str) -> fused.Tiling:
    shared, processors = DEVICES[capability]
    card = mock.Mock(shared_memory_per_block_optin=shared * 1024, multi_processor_count=processors)
    with mock.patch.object(torch.cuda, "get_device_properties", return_value=card):
        return fused.tiling(torch.device("cuda:0"), TYPES[dtype])


def compile_all(capability: int, dtype: str) -> Iterator[tuple[str, int, str]]:
    """Yields (name, bytes of shared memory, PTX) of each kernel, as fused.py launches it."""
    tiles = tiles_of(capability, dtype)
    number, pointer = "fp32", f"*{dtype}"
    for name, pointers, integers, constants, options in (
        (
            "partial_moments",
            {"hidden": pointer, "weight": pointer, "bias": pointer, "targets": "*i64", "out": "*fp32"},
            ("count", "vocabulary", "width", "per_split", "hidden_stride", "weight_stride"),
            {"BIASED": True, "CAPPED": True, "ROUNDED": dtype != "fp32", "SQUARES": True, "ROWS": tiles.rows,
             "COLUMNS": tiles.columns, "INNER": tiles.inner},
            {"num_warps": tiles.warps, "num_stages": tiles.stages},
        ),
        (
            "joined_statistics",
            {"parts": "*fp32", "out": "*fp32"},
            ("count", "splits"),
            {"SQUARES": True, "ROWS": 128},
            {"num_warps": 4},
        ),
        (
            "logit_gradient",
            {"products": pointer, "targets": "*i64"}
            | dict.fromkeys(("reference", "at_target", "constant", "linear"), "*fp32"),
            ("first", "columns_here"),
            {"LINEAR": True, "CAPPED": True, "COLUMNS": 1024},
            {"num_warps": 4},
        ),
    ):  # fmt: skip
        function: Any = getattr(kernels, name)
        signature = pointers | dict.fromkeys(integers, "i32") | dict.fromkeys(constants, "constexpr")
        signature = {argument: signature.get(argument, number) for argument in function.arg_names}
        aligned = [*pointers, *(i for i in integers if i in ("width", "per_split", "hidden_stride", "weight_stride"))]
        attributes = {(function.arg_names.index(a),): [["tt.divisibility", 16]] for a in aligned}
        source = ASTSource(function, signature, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.asm["cubin"]
        yield name, compiled.metadata.shared, compiled.asm["ptx"]

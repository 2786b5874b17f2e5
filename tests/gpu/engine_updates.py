"""Part `engine` of check.py: vLLM on the device, by cases of tests/integration/test_weight_sync.py."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable

Say = Callable[..., None]  # (what, found, ok)


def engine(say: Say) -> None:
    os.environ["ISENTROPE_TOLERANCE"] = "5e-5"  # random weights grow, and with them what two devices round apart
    import torch
    from integration import weight_sync_cases

    say("device of this process", torch.cuda.get_device_name(), True)
    for name, work in (
        ("qwen3 tied, 5 updates in fp32: worst gap", lambda f: weight_sync_cases.many_updates(f, "qwen3", True, 5)),
        ("llama untied, 5 updates in fp32: worst gap", lambda f: weight_sync_cases.many_updates(f, "llama", False, 5)),
        (
            "bf16, silent layers: gap by head",
            lambda f: weight_sync_cases.updates_in_precision(f, "qwen3", True, "bf16"),
        ),
        (
            "bf16-fp32head: gap by head",
            lambda f: weight_sync_cases.updates_in_precision(f, "qwen3", True, "bf16-fp32head"),
        ),
        ("sampling rules: worst gap", weight_sync_cases.sampling_rules),
        ("update in flight: token of the change", weight_sync_cases.update_in_flight),
        ("broken transfers heal: errors seen", lambda f: len(weight_sync_cases.failures(f))),
    ):
        try:
            result = work(tempfile.mkdtemp())
        except Exception as error:  # noqa: BLE001 - a line of the table
            traceback.print_exc()
            say(name, f"{type(error).__name__}: {error}"[:160], False)
            continue
        if isinstance(result, dict):
            result = ", ".join(f"{k} {v:.1e}" for k, v in result.items())
        say(name, str(result), True)

"""Imports what every family needs, in the server that the families' processes are forked from."""

from actors.vllm_build import prepare_environment

prepare_environment(cpu=True)

import models.one_family  # noqa: E402
import models.served  # noqa: E402, F401
import vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method  # noqa: E402
import vllm.v1.engine.llm_engine  # noqa: E402
import vllm.v1.worker.cpu_model_runner  # noqa: E402, F401

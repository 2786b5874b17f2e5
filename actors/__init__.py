"""Who runs where: plain classes, and one file of Ray shells.

| file | what |
|---|---|
| settings.py | what can be set about generators, verifiers, sampling and reward terms (no torch, no vLLM) |
| inference.py | `SamplingParams`, `Request`, `Completion`, the `InferenceEngine` protocol |
| vllm_engine.py | vLLM behind that protocol, stepped by a thread of this process |
| vllm_worker.py | what runs inside vLLM's worker: weights from the channel into the model |
| generator.py | an engine with a policy version: refuses to serve anything but the current one |
| verifier.py | sessions and time limits; an error becomes a verdict |
| rollout.py | prompt to group, over callables: generate, judge, reward |
| pool.py | routing, health, replacement |
| remote.py | the only `@ray.remote` classes |
| rewards/ | Reward terms beside the environment: reward models, a language model as judge, their sum |
"""

"""Who runs where: plain classes, and one file of Ray shells.

| file | what |
|---|---|
| inference.py | `SamplingParams`, `Request`, `Completion`, the `InferenceEngine` protocol |
| vllm_engine.py | vLLM behind that protocol, stepped by a thread of this process |
| vllm_worker.py | what runs inside vLLM's worker: weights from the channel into the model |
| generator.py | an engine with a policy version: refuses to serve anything but the current one |
| verifier.py | sessions and time limits; an error becomes a verdict |
| rewards.py | what a reply earns: the environment's verdict and other terms, each with its weight |
| reward_model.py | a sequence classifier that judges replies |
| judge.py | a language model that judges replies: the question, the score in the answer |
| judge_endpoint.py | who answers it: an OpenAI-compatible endpoint |
| judge_generators.py | or generators of the run's own, with a model that is never trained |
| rollout.py | prompt to group, over callables: generate, judge, reward |
| pool.py | routing, health, replacement |
| remote.py | the only `@ray.remote` classes |
"""

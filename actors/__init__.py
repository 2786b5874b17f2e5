"""Runs the parts of a run: plain classes, the Ray actors around them, and the handles that call those.

| file | what it does |
|---|---|
| settings.py        | declares what can be set about generators, verifiers, sampling and reward terms |
| inference.py       | defines `SamplingParams`, `Request`, `Completion` and the `InferenceEngine` protocol |
| vllm_engine.py     | puts vLLM behind that protocol, stepped by a thread of this process |
| vllm_build.py      | builds a vLLM engine from settings |
| vllm_process.py    | runs an engine in a process of its own, without Ray |
| vllm_models        | adds to vLLM's models: the run's adapter, the text-only Qwen3.5 |
| vllm_requests.py   | keeps what is under way inside vLLM |
| vllm_worker.py     | runs inside vLLM's worker: weights from the channel into the model |
| generator.py       | gives an engine a policy version: a generator serves the current one or nothing |
| verifier.py        | scores responses by their environments, with time limits; an error becomes a verdict |
| verifier_worker.py | runs in the verifier's subprocess: environments and their sessions |
| rollout.py         | goes from a prompt to a group, over callables: generate, score, reward |
| pool.py            | routes calls to members by load, and takes dead ones out of service |
| remote.py          | defines the Ray actor classes |
| handles.py         | calls them: one typed method for each remote call |
| rewards/           | has the reward terms beside the environment: reward models, a language model as judge, their sum |
"""

"""Adds to the models that vLLM runs what it lacks.

| file       | what |
|---|---|
| adapter.py | applies the run's adapter inside vLLM's linear layers, and loads a version of it in place |
| qwen3_5.py | gives vLLM its text-only Qwen3.5 where torchvision is not installed |
"""

"""Reward terms beside the environment: reward models, a language model as judge, their sum.

| file | what |
|---|---|
| composite.py        | what a response earns: the environment's verdict and other terms, each with its weight |
| endpoint.py         | who answers it: an OpenAI-compatible endpoint |
| judge.py            | a language model that judges responses: the question, the score in the answer |
| judge_generators.py | or generators of the run's own, with a model that is never trained |
| reward_model.py     | a sequence classifier that judges responses |
"""

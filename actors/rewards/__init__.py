"""Computes reward terms beside the environment: reward models, a language model as judge, their sum.

| file | what it does |
|---|---|
| composite.py        | adds up what a response earns: the environment's verdict and other terms, each with its weight |
| endpoint.py         | answers a judge's questions by an OpenAI-compatible endpoint, with retries |
| judge.py            | asks a language model to judge responses: the question, the score in the answer |
| judge_generators.py | answers a judge's questions by generators of the run, with a model that is never trained |
| reward_model.py     | scores responses by a sequence classifier |
"""

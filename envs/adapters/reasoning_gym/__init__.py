"""Adapts the task families of reasoning-gym, which runs in a subprocess of its own.

| file           | what                                                                  |
|----------------|-----------------------------------------------------------------------|
| environment.py | the environment ReasoningGym: one task family, or a weighted mixture  |
| worker.py      | the functions that run in the subprocess                              |
"""

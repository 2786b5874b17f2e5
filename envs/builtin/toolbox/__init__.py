"""Offers small apps called by text over several turns, scored by the final state.

| file           | what                                                                       |
|----------------|----------------------------------------------------------------------------|
| environment.py | the environment Toolbox, its session and its expert                        |
| tasks.py       | the task templates, in three levels                                        |
| world.py       | the apps: the state, the functions with their docs, the parser of calls    |
"""

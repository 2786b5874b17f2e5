"""Environments of other libraries; each imports its library lazily.

| file | what |
|---|---|
| appworld.py    | tasks of AppWorld's apps, a client of its server |
| gym.py         | an object with reset and step on text: gymnasium's, GEM's, TextArena's way |
| reasoning_gym/ | Task families of reasoning-gym, in a subprocess of their own |
"""

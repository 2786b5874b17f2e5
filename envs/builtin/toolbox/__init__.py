"""Small apps called by text over several turns, scored by the state they are left in.

| file | what |
|---|---|
| environment.py | small apps called by text over several turns, scored by the state they are left in |
| tasks.py       | its task templates, in three levels |
| world.py       | its apps: the state, the functions with their docs, the strict parser of calls |
"""

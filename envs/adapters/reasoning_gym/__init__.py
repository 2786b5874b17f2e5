"""Task families of reasoning-gym, in a subprocess of their own.

| file | what |
|---|---|
| environment.py | any task family of reasoning-gym, or a weighted mixture of them |
| worker.py      | the half of that adapter which runs in the subprocess |
"""

"""One run: the loop, and its life from configuration to exit.

| file | what |
|---|---|
| buffer.py    | finished groups, bounded, each with the age it may reach |
| lifecycle.py | a run from its configuration to its exit |
| loop.py      | the data flow of a run |
"""

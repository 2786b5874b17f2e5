"""Runs one configuration: the loop, and what is around it from start to exit.

| file | what |
|---|---|
| lifecycle.py | a run from its configuration to its exit |
| loop.py      | the training loop |
| protocols.py | what the loop calls of the cluster and of the producer of batches |
| resume.py    | the checkpoint that a run goes on from |
| state.py     | what a checkpoint's state.json says of a run |
| stop.py      | the signals that stop a run |
| warm_start.py | the tiny models that the CPU recipes begin with |
"""

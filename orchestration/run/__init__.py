"""Runs one configuration: the loop, and what is around it from start to exit.

| file | what |
|---|---|
| beside.py    | what goes on beside a run: requests, status, what it waits for |
| control.py   | requests to a run that goes on: stop, scale |
| folder.py    | the lock of a run's folder, and what a later resume needs there |
| lifecycle.py | a run from its configuration to its exit |
| loop.py      | the training loop |
| plan.py      | what a run will need, and whether this node's memory can hold it |
| protocols.py | what the loop calls of the cluster and of the producer of batches |
| resume.py    | the configuration and the checkpoint that a run goes on from |
| saving.py    | when a checkpoint is saved, and what a full disk does to the run |
| state.py     | what a checkpoint's state.json says of a run |
| stop.py      | the signals that stop a run |
| tracing.py   | gathers what driver and actors recorded, for `run.trace` |
| warm_start.py | the tiny models that the CPU recipes begin with |
| watchdog.py  | says which phase makes no progress, and what it waits for |
"""

"""Finds out whether an actor is well, and ends every wait for one that is not.

| file | what it does |
|---|---|
| lifeline.py | bounds each wait for an actor, and ends all of them when the actor is given up |
| monitor.py  | asks every actor what it has done, and gives up those that a limit was passed for |
| stacks.py   | writes down what a process is doing: the stack of every thread and task |
| state.py    | decides from an actor's progress whether it is well: a state machine without clock or network |
"""

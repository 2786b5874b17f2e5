"""Ray actors: where they are placed, what they are built from, how they get weights.

| file | what |
|---|---|
| actor_settings.py | what each actor is built from, out of a configuration |
| actor_slots.py    | processes in their places, and their end |
| cluster.py        | from a configuration to running actors, and back to none |
| placement.py      | pure: what a run asks for, whether the cluster has it |
"""

"""Places Ray actors, builds them from a configuration, moves weights to them, and closes them.

| file | what it does |
|---|---|
| actor_settings.py | says what each actor is built from, out of a configuration |
| actor_slots.py    | reserves a placement group, starts one actor per slot, and shuts them down |
| cluster.py        | starts a run's actors, renews them for the next run, replaces those that died |
| logprob_check.py  | compares the engines' log-probs with the trainer's |
| placement.py      | computes what a run asks for, and whether the cluster has it; pure |
| start_check.py    | compares trainer, engines and plain transformers before anything is trained, and says which part disagrees |
| weight_sync.py    | decides when weights move, and repairs a transfer that broke |
"""

"""Places Ray actors, builds them from a configuration, moves weights to them, and closes them.

| file | what it does |
|---|---|
| actor_makers.py   | starts one actor of each kind, and waits until it can work |
| actor_settings.py | says what each actor is built from, out of a configuration |
| actor_slots.py    | reserves a placement group, starts one actor per slot, and shuts them down |
| cluster.py        | starts a run's actors, renews them for the next run or after a loss of the learner |
| dumps.py          | writes the stacks of every actor into RUN/dumps |
| logprob_check.py  | compares the engines' log-probs with the trainer's |
| lean_ray.py       | leaves out what Ray would start beside a cluster of our own and nothing here asks |
| members.py        | keeps generators and scorers in number: follows them, replaces the dead, adds and drains |
| node_memory.py    | what memory this node and its GPUs have |
| placement.py      | computes what a run asks for, and whether the cluster has it; pure |
| session.py        | joins a Ray cluster or starts one of its own, watches that it answers, and leaves it |
| start_check.py    | compares trainer, engines and plain transformers before anything is trained, and says which part disagrees |
| start_progress.py | shows how many actors answer while a run starts, and what took how long |
| turns.py          | gives GPUs that learner and generators share to one of them at a time |
| weight_sync.py    | sends weights, and goes on without those that a transfer breaks at |
"""

"""Plans memory before anything starts: what every actor needs, and what would fit where that does not (no torch, no ray).

| file | what |
|---|---|
| activations.py  | what forward and backward passes keep, in bytes a token |
| alternatives.py | settings with which a run that does not fit would |
| learner_rank.py | what a learner's rank holds, phase by phase |
| model_size.py   | a model's parameters and widths, from the headers of its files |
| need.py         | what one actor needs, in parts |
| plan.py         | the plan of a run: learner, generators, a host's total, turns on a GPU |
| shapes.py       | the shapes of published models, by their names on the hub |
"""

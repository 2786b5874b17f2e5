"""From prompts to scored groups: curriculum, rollouts, dynamic sampling, evaluation.

| file | what |
|---|---|
| codec.py            | a model's own tokenizer and chat template |
| curriculum.py       | which prompt comes next |
| dynamic_sampling.py | dynamic sampling: which groups are trained on, whether more are generated |
| evaluation.py       | pass@1, pass@k, distinct solutions, at several temperatures |
| prompt_pool.py      | adaptive difficulty: which prompts come again |
| reward_function.py  | from the recipe's `rewards` to the callable that gives responses their reward |
| rollouts.py         | many rollouts at once: prompts to groups |
"""

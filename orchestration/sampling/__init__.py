"""Turns prompts into scored groups: curriculum, rollouts, dynamic sampling, evaluation.

| file | what |
|---|---|
| asynchronous.py     | producer.py beside the training: generators work on later batches meanwhile |
| codec.py            | a model's own tokenizer and chat template |
| curriculum.py       | which prompt comes next, and when the next stage does |
| dynamic_sampling.py | which groups are trained on, and whether more are generated |
| evaluation.py       | pass@1, pass@k, distinct solutions, at several temperatures |
| pending.py          | the groups that an asynchronous run has begun and not trained on |
| producer.py         | the next batch of groups: what the loop asks for |
| prompt_pool.py      | adaptive difficulty: which prompts come again |
| reward_function.py  | from the recipe's `rewards` to the function that gives responses their reward |
| rollouts.py         | many rollouts at once: prompts to groups |
"""

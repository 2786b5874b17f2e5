"""Reports what a run does while it goes on: metric keys, rows, sinks, alarms.

| file | what |
|---|---|
| alarms.py          | pure: the alarms of a run, each raised once |
| iteration_row.py   | an iteration's row of metrics |
| keys.py            | the table of metric names, and their typed keys |
| reward_hacking.py  | pure: whether the reward rises without what it stands for |
| rollout_metrics.py | the metrics and samples of an iteration's responses |
| sinks/             | where a run's numbers go: run folder, terminal, TensorBoard |
"""

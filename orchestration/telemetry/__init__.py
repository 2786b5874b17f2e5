"""Reports what a run does while it goes on: metric keys, rows, sinks, alarms.

| file | what |
|---|---|
| alarms.py          | pure: the alarms of a run, each raised once |
| environment_errors.py | pure: environments that raise, and when they end a run |
| iteration_row.py   | an iteration's row of metrics |
| keys.py            | the table of metric names |
| reward_hacking.py  | pure: whether the reward rises without what it stands for |
| rollout_metrics.py | the metrics and samples of an iteration's responses |
| staleness.py       | pure: how old the policy is that sampled a batch |
| trace_file.py      | the spans of driver and actors as a Chrome trace |
| typed_keys.py      | the parts of a metric's name |
| sinks/             | where a run's numbers go: run folder, terminal, TensorBoard |
"""

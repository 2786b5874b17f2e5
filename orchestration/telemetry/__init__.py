"""What a run reports while it goes on: metric keys, rows, sinks, alarms.

| file | what |
|---|---|
| alarms.py          | pure: what a person should hear once while a run goes on |
| iteration_row.py   | an iteration's row of metrics |
| keys.py            | the table of metric names |
| live.py            | the dashboard in the terminal |
| reward_drift.py    | pure: does the reward rise without what it stands for |
| rollout_metrics.py | what an iteration's responses say: metrics and samples |
| sinks.py           | where a run's numbers go |
"""

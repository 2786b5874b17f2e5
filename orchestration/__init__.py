"""Conducts a run from its configuration to its report.

| package | what |
|---|---|
| cli.py       | the commands; each imports what it needs when it runs |
| cli_models.py | those about models and environments that train nothing |
| __main__.py  | `python -m orchestration` |
| errors.py    | exceptions and their exit codes |
| defects.py   | errors that nobody expected: a sentence, and the traceback in a file |
| plain_yaml.py | YAML as text, numbers, lists and mappings of bounded size |
| stats.py     | pure: pass@k, means, a fitted line |
| thresholds.py | pure: the table of thresholds that alarms, findings and labs share |
| text.py      | pure: numbers, shares, durations and errors as short text |
| group_stats.py | pure: statistics of scored groups |
| config/      | RunConfig: recipes and overrides, strict, every mistake one sentence |
| memory/      | what memory a run will need, and what would fit |
| cluster/     | Ray actors: placement, start, replacement, weights |
| sampling/    | prompts to scored groups |
| telemetry/   | metric keys, rows, sinks, alarms |
| analysis/    | what a run's numbers say |
| report/      | report.html |
| lab/         | grids of runs |
| run/         | the loop and a run's life |
| jobs/        | runs that are submitted to a cluster |
| commands/    | the commands that are more than a call |
| recipes/     | YAML files that load_config finds by name |
| grids/       | YAML files that load_grid finds by name |
"""

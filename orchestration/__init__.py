"""The conductor: from a configuration to a finished run.

| file          | what                                                                                              |
|---------------|---------------------------------------------------------------------------------------------------|
| cli.py        | the commands; each imports what it needs when it runs                                             |
| __main__.py   | `python -m orchestration`                                                                         |
| demo.py       | `isentrope demo`                                                                                  |
| play.py       | `isentrope play`: one prompt by hand                                                              |
| warmstart.py  | `isentrope init-model`                                                                            |
| precision.py  | `isentrope precision`: engine against trainer in every precision                                  |
| probe.py      | its measurements: replies of an engine in each precision, scored by the trainer in each           |
| train.py      | a run from its configuration to its exit                                                          |
| config.py     | RunConfig: recipes and overrides, strict, every mistake one sentence                              |
| placement.py  | pure: what a run asks for, whether the cluster has it                                             |
| launch.py     | from a configuration to running actors, and back to none                                          |
| loop.py       | the data flow of a run                                                                            |
| rollouts.py   | many rollouts at once: prompts to groups                                                          |
| buffer.py     | finished groups, bounded, each with the age it may reach                                          |
| curriculum.py | which prompt comes next                                                                           |
| evaluation.py | pass@1, pass@k, distinct solutions, at several temperatures                                       |
| estimators.py | pure: pass@k, means, a fitted line                                                                |
| metrics.py    | the table of metric names                                                                         |
| sinks.py      | where a run's numbers go                                                                          |
| live.py       | the dashboard in the terminal                                                                     |
| summary.py    | a run folder in memory, and its summary in numbers and words                                      |
| report.py     | one self-contained report.html from run folders                                                   |
| charts.py     | which numbers of the runs go into which picture of a report                                       |
| plots.py      | pictures as SVG text                                                                              |
| errors.py     | exceptions and their exit codes                                                                   |
| recipes/      | YAML files that load_config finds by name                                                         |
"""

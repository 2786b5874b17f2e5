"""The conductor: from a configuration to a finished run.

| file              | what                                                                                            |
|-------------------|-------------------------------------------------------------------------------------------------|
| cli.py            | the commands; each imports what it needs when it runs                                           |
| __main__.py       | `python -m orchestration`                                                                       |
| demo.py           | `isentrope demo`                                                                                |
| doctor.py         | `isentrope doctor`: what this machine has of what a run needs                                   |
| play.py           | `isentrope play`: one prompt by hand                                                            |
| warmstart.py      | `isentrope init-model`                                                                          |
| precision.py      | `isentrope precision`: engine against trainer in every precision                                |
| probe.py          | its measurements: replies of an engine in each precision, scored by the trainer in each         |
| train.py          | a run from its configuration to its exit                                                        |
| config.py         | RunConfig: recipes and overrides, strict, every mistake one sentence                            |
| world.py          | whether what it names is there: models, environments, keys                                      |
| sections.py       | its sections                                                                                    |
| reward_sections.py | those of `rewards`: the terms of a reward                                                     |
| reading.py        | YAML, overrides at dotted keys, errors as sentences                                             |
| placement.py      | pure: what a run asks for, whether the cluster has it                                           |
| actor_settings.py | what each actor is built from, out of a configuration                                           |
| seats.py          | processes in their places, and their end                                                        |
| launch.py         | from a configuration to running actors, and back to none                                        |
| codec.py          | a model's own tokenizer and chat template                                                       |
| loop.py           | the data flow of a run                                                                          |
| replies.py        | what an iteration's replies say: metrics and samples                                            |
| rollouts.py       | many rollouts at once: prompts to groups                                                        |
| rewards.py        | from the recipe's `rewards` to the callable that gives replies their reward                     |
| drift.py          | pure: does the reward rise without what it stands for                                           |
| buffer.py         | finished groups, bounded, each with the age it may reach                                        |
| curriculum.py     | which prompt comes next                                                                         |
| difficulty.py     | adaptive difficulty: which prompts come again                                                   |
| dynamic.py        | dynamic sampling: which groups are trained on, whether more are generated                       |
| evaluation.py     | pass@1, pass@k, distinct solutions, at several temperatures                                     |
| estimators.py     | pure: pass@k, means, a fitted line                                                              |
| metrics.py        | the table of metric names                                                                       |
| alarms.py         | pure: what a person should hear once while a run goes on                                        |
| sinks.py          | where a run's numbers go                                                                        |
| live.py           | the dashboard in the terminal                                                                   |
| summary.py        | a run folder in memory, and its summary in numbers and words                                    |
| findings.py       | what such a sentence is, and the readings they share                                            |
| checks_entropy.py | the sentences on what entropy did, and why                                                      |
| checks_control.py | the sentences on what control did                                                               |
| checks_outcome.py | the sentences on what it cost, and on whether the numbers can be trusted                        |
| diagnosis.py      | what a run's numbers say about its entropy, in sentences                                        |
| report.py         | one self-contained report.html from run folders                                                 |
| story.py          | what a report shows in which order: chapters of a run, sections of charts                       |
| charts.py         | which numbers of the runs go into which picture of a report                                     |
| plots.py          | pictures as SVG text                                                                            |
| points.py         | points with error bars, and names that do not cover one another                                 |
| grid.py           | a laboratory's grid: YAML to the configurations of its runs                                     |
| retention.py      | pure: what a run with stages kept: matrix, transfer, forgetting                                 |
| retention_page.py | a report's section on it                                                                        |
| lab.py            | `isentrope lab`: the runs of a grid on warm actors, in lanes                                    |
| lab_figures.py    | the figures of one run of a lab                                                                 |
| lab_results.py    | arms x seeds: mean and spread of every figure, the table of them                                |
| lab_compare.py    | which differences the seeds support, who is on the Pareto front                                 |
| lab_story.py      | what a lab found, in sentences                                                                  |
| lab_charts.py     | the pictures of a lab: mean and spread over seeds, small multiples                              |
| lab_report.py     | one self-contained page from all the runs of a lab                                              |
| errors.py         | exceptions and their exit codes                                                                 |
| recipes/          | YAML files that load_config finds by name                                                       |
| grids/            | YAML files that load_grid finds by name                                                         |
"""

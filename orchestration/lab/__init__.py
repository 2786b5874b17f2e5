"""Runs grids of methods x settings x seeds on warm actors and compares them.

| file | what |
|---|---|
| charts.py     | mean and spread over seeds, small multiples, Pareto charts |
| collect.py    | the results of a lab from its run folders |
| compare.py    | which differences the seeds support, which arms are on the Pareto front |
| run_metrics.py | the metrics of one run of a lab |
| grid.py       | a grid file, and the configurations of its runs |
| headline.py   | what a lab of two arms found, in one sentence |
| lab_report.py | one self-contained page about all the runs of a lab |
| narrative.py  | the results of a lab in sentences |
| results.py    | metrics of every arm and seed, and their spread, as results.json holds them |
| runner.py     | `isentrope lab`: the runs of a grid on warm actors, by several workers |
| tables.py     | the tables of a lab |
"""

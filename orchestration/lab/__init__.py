"""Grids of methods x settings x seeds, run on warm actors and compared.

| file | what |
|---|---|
| charts.py     | the pictures of a lab: mean and spread over seeds, small multiples |
| compare.py    | which differences the seeds support, who is on the Pareto front |
| figures.py    | the figures of one run of a lab |
| grid.py       | a laboratory's grid: YAML to the configurations of its runs |
| lab_report.py | one self-contained page from all the runs of a lab |
| narrative.py  | what a lab found, in sentences |
| results.py    | arms x seeds: mean and spread of every figure, the table of them |
| runner.py     | `isentrope lab`: the runs of a grid on warm actors, in lanes |
"""

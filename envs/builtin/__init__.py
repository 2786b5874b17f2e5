"""Holds the environments that come with the package.

| file            | what                                                                                |
|-----------------|-------------------------------------------------------------------------------------|
| arithmetic.py   | "3+4=": the smallest learnable task, for smoke tests                                |
| countdown.py    | numbers and a target, every solution known: the task to study entropy on            |
| guess.py        | higher or lower, hidden bits: games of several turns whose best play is known       |
| python_program/ | write f(x); hidden tests decide                                                     |
| questions/      | your own questions with one answer each, from a file or a data set                  |
| toolbox/        | small apps called by text over several turns, scored by the final state             |
"""

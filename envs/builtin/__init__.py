"""The environments that come with the package.

| file | what |
|---|---|
| arithmetic.py   | "3+4=": the smallest task that can be learned, for smoke tests |
| countdown.py    | digits and a target, every solution listed: the task to study entropy on |
| guess.py        | higher or lower, hidden bits: games of several turns whose best play is known |
| python_program/ | Write f(x) |
| questions/      | Questions with one answer each, from a file or a data set |
| toolbox/        | Small apps called by text over several turns, scored by the state they are left in |
"""

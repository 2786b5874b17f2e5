"""Submits runs to a Ray cluster as jobs, follows them and stops them.

| file         | what                                                                                     |
|--------------|------------------------------------------------------------------------------------------|
| client.py    | the connection to a cluster's job server: token, waits, log, exit code                   |
| control.py   | `isentrope status`, `logs` and `stop` of a job                                           |
| packing.py   | what a run needs of this machine: by upload or by path                                   |
| submit.py    | `isentrope submit`                                                                       |
| variables.py | environment variables that go along: a file that only the user can read, on every node   |
"""

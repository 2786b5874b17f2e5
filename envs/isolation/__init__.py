"""Calls that can be killed, and programs that are not trusted.

| file | what |
|---|---|
| killable.py   | a function call of our own that can be killed: one reused subprocess, all rights |
| sandbox.py    | a program that is not trusted: run once, isolated as well as this machine can |
| seccomp.py    | pure: the system calls such a program may not make |
| supervisor.py | the far end: namespaces, file system, rights, limits, the supervisor |
| watch.py      | the driver's end of one run: limits, outcome, reading what it prints, stopping it |
"""

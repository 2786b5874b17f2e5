"""Runs calls that can be killed, and untrusted programs in a sandbox.

| file          | what                                                                                   |
|---------------|----------------------------------------------------------------------------------------|
| killable.py   | a call of OUR code that can be killed: one reused subprocess with all rights           |
| sandbox.py    | an untrusted program, run once, isolated as well as this machine can                   |
| watch.py      | the driver's end of such a run: limits, outcome, output, stopping it                   |
| supervisor.py | the far end: namespaces, file system, rights, limits; sent to the interpreter as text  |
| seccomp.py    | the filter of system calls that the far end installs                                   |
"""

"""Adapts text environments of other libraries that have reset and step.

| file           | what                                                                                      |
|----------------|-------------------------------------------------------------------------------------------|
| environment.py | the environment Gym and its session                                                       |
| game.py        | one environment of the library: its signatures, and global random states of its own       |
"""

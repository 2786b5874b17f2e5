"""Adapts AppWorld, whose servers are called over HTTP.

| file           | what                                                                    |
|----------------|-------------------------------------------------------------------------|
| environment.py | the environment AppWorld and its session                                |
| server.py      | one server: calls, their errors, and the record of whose world it has   |
"""

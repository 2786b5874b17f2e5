"""Asks for Python functions: programs run in the sandbox, hidden tests decide.

| file           | what                                          |
|----------------|-----------------------------------------------|
| environment.py | the environment PythonProgram and its session |
| templates.py   | the functions it asks for                     |
"""

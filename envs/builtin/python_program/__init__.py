"""Write f(x): programs run in the sandbox, hidden tests decide.

| file | what |
|---|---|
| environment.py | write f(x): programs run in the sandbox, examples shown, hidden tests decide |
| templates.py   | the functions that environment asks for |
"""

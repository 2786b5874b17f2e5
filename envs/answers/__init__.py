"""Pure: the answer inside a response, and whether it equals the reference.

| file | what |
|---|---|
| extract.py | pure: the answer inside a response, the program inside a response |
| grading.py | is that answer equal to the reference: exact -> numeric -> symbolic |
"""

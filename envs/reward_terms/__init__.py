"""Pure: reward terms that are computed from a response alone.

| file | what |
|---|---|
| format_match.py | whether responses have a form: a regular expression, scored like a task |
| length.py       | pure: what length adds to a reward, a raw score on another scale |
"""

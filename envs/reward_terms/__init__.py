"""Computes the formulas of reward terms from a response alone; the terms themselves are in actors/rewards/composite.py.

| file            | what                                                        |
|-----------------|-------------------------------------------------------------|
| format_match.py | the share of responses that match a regular expression      |
| length.py       | terms of a response's length, and raw scores rescaled       |
| own_function.py | a function of the user's with TRL's or verl's signature     |
"""

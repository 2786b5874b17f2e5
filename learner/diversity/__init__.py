"""Holds the diversity of what works: a correct response is worth less the more of its group solved the task alike (no torch).

rewards.py   pure: shares of equal solutions, the rewards that follow from them, the effective number of solutions
settings.py  the section `diversity`: coefficient, controller, target
control.py   moves the coefficient and changes the rewards, once an iteration
"""

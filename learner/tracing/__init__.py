"""Records which stage took when, in any process of a run (standard library alone).

spans.py  spans of time by name, kept in a ring until somebody takes them
"""

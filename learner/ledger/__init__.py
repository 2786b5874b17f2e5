"""Keeps account of entropy: what it was, what an update should do to it, and what it did (torch, pure).

tally.py        sums, maxima and values of a rank, reduced by a few collectives
predicted.py    the first-order change of entropy of every token, and what is tallied of a micro-batch
states.py       what older policies sampled, weighted as the present policy would visit it
step_effect.py  what the optimiser's own steps should do to entropy, and what they did
phantom.py      what clipping would cut of a ratio that should be 1
history.py      one iteration's row, and the regressions of realised on predicted changes over iterations
"""

"""Entropy control: one method a file, and what steers its knob (no torch at import).

base.py         the protocols, the knob, and Steering, which joins a method, a controller and a target
none.py         no control: the baseline
bonus.py        the exact-entropy bonus in the loss
repo.py         REPO-R and REPO-D: the advantage is changed
clip.py         clip-higher and ADAPO: the upper clip range is changed
controllers.py  fixed, doubling, proportional: pure, bounded, validated
target.py       the entropy to hold, in nats or as a fraction of the start
build.py        the two dicts kind -> class, and build()
"""

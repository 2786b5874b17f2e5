"""Controls entropy: one method a file, and what steers its coefficient (no torch at import).

base.py         the interface of a method, and the range of its coefficient
none.py         no control: the baseline
bonus.py        the exact-entropy bonus in the loss
repo.py         REPO, REPO-R and REPO-D: the advantage is changed
clip.py         clip-higher, ADAPO and lower clip: a clip range is changed
entrocraft.py   Entrocraft: one sign of the advantages is left out
covariance.py   Clip-Cov and KL-Cov: the few tokens whose advantage goes with their log-prob
steering.py     a controller with its target is a loop; Steering joins a method and its loops
controllers.py  fixed, doubling, proportional, additive, band, pi: pure, validated, bounds that follow the batches
isentropic.py   the controller that cancels the predicted change
target.py       the entropy to hold: nats or a fraction of the start, scheduled, over all or the correct responses
build.py        the two dicts kind -> class, and build()
settings.py     the section `entropy`: method, controller, target
"""

"""Holds what one model family does and another does not.

logit_scale.py     pure: what a family's own forward does to its logits, from its configuration
router_balance.py  pure: the load-balancing loss of a mixture's routers
"""

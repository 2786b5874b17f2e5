"""Builds AdamW with moments in 32 or in 8 bits, and reads and writes the moments as float32 in either case.

adamw.py    which of the two is built, its state before the first step, and the reset of it
moments.py  ranges of a flat tensor as float32, whatever they are stored in: what a checkpoint is made of
"""

"""Makes the tiny models that demos, tests and recipes for CPUs start from.

settings.py     everything such a model depends on, and the key of its cache
tokenizer.py    a character-level tokenizer whose special tokens cannot be typed
teacher.py      creates the model and teaches it on the environments' demonstrations
model_cache.py  `init_model`: makes it once, keeps it, copies it where it is wanted
"""

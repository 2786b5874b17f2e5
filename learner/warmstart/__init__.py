"""Makes the models that demos, tests and recipes for CPUs start from: tiny ones, and pretrained ones out of a GGUF file.

settings.py     everything such a model depends on, and the key of its cache
tokenizer.py    a character-level tokenizer whose special tokens cannot be typed
teacher.py      creates the model and teaches it on the environments' demonstrations
model_cache.py  `init_model`: makes it once, keeps it, copies it where it is wanted
gguf_folder.py  turns a GGUF file into a Hugging Face folder
whole_folder.py writes a folder that appears complete or not at all
"""

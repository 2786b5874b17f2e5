"""Configures a run: recipes and overrides, strict, every mistake one sentence (no torch, no ray).

| file | what |
|---|---|
| checks.py          | rules between sections, each a pure function |
| composition.py     | the sections of a run, whatever they say |
| loader.py          | YAML, overrides at dotted keys, errors as sentences |
| model_folder.py    | whether a local model folder can be loaded, as far as its small files say |
| preflight.py       | whether what it names is there: models, environments, keys |
| resume_rules.py    | whether a configuration can go on from another one's checkpoint |
| reward_sections.py | the section `rewards`, composed of the terms' settings |
| run_config.py      | RunConfig: all sections, and what follows from them |
| sections.py        | the sections of the run itself; the others are declared beside their readers |
"""

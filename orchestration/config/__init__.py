"""Configuration: recipes and overrides, strict, every mistake one sentence (no torch, no ray).

| file | what |
|---|---|
| loader.py          | YAML, overrides at dotted keys, errors as sentences |
| preflight.py       | whether what it names is there: models, environments, keys |
| resume_rules.py    | whether a configuration can go on from another one's checkpoint |
| reward_sections.py | those of `rewards`: the terms of a reward |
| run_config.py      | RunConfig: recipes and overrides, strict, every mistake one sentence |
| sections.py        | its sections |
"""

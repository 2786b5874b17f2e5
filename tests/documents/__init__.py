"""Checks that the documents are true: their commands, links and paths, and the pages generated from the code.

| file | what |
|---|---|
| config_meanings.py   | a sentence for every configuration key whose declaration does not describe it for a user |
| config_reference.py  | writes docs/configuration.md from the configuration classes |
| memory_reference.py  | writes docs/memory.md from the planner |
| metrics_reference.py | writes docs/metrics.md from the table of metric keys |
| test_commands.py     | every command line parses, every link and path exists |
| test_examples.py     | the recipes and programs that a reader would copy validate and play |
| test_references.py   | the generated pages are current and complete |
"""

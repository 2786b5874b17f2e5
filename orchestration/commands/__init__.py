"""The commands of the command line that are more than a call.

| file | what |
|---|---|
| demo.py            | `isentrope demo` |
| doctor.py          | `isentrope doctor`: what this machine has of what a run needs |
| init_model.py      | `isentrope init-model` |
| play.py            | `isentrope play`: one prompt by hand |
| precision.py       | `isentrope precision`: engine against trainer in every precision |
| precision_probe.py | its measurements: responses of an engine in each precision, scored by the trainer in each |
"""

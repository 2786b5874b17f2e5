"""Implements the commands of the command line that take more than one call.

| file               | what                                                                                        |
|--------------------|---------------------------------------------------------------------------------------------|
| control.py         | `isentrope status`, `stop` and `scale`: a run that goes on                                   |
| doctor.py          | `isentrope doctor`: checks this machine for what a run needs                                |
| get_model.py       | `isentrope get-model`: a small pretrained model from a package index                        |
| init_model.py      | `isentrope init-model`: makes and warm-starts a tiny model                                  |
| logs.py            | `isentrope logs`: events of a run, output of its actors                                      |
| play.py            | `isentrope envs` and `isentrope play`: lists environments, one prompt answered by hand      |
| precision.py       | `isentrope precision`: its prompts, its table, its JSON                                     |
| precision_probe.py | its measurements: responses of the engine in each precision, scored by the trainer          |
"""

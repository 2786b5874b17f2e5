"""What is asked and how it is scored. Standard library only; adapters import their library lazily.

| file                     | what it holds                                                                        |
|--------------------------|--------------------------------------------------------------------------------------|
| types.py                 | Prompt, Message, Turn, Trajectory, Group, Verdict, Status: cross process boundaries  |
| base.py                  | the protocols Environment and Session, demonstrations, play() a policy               |
| catalog.py               | BUILTIN name -> "module:Class", load(), describe(), errors with the nearest name     |
| tasks.py                 | what tasks of one response share: OneReply, held_out, task_random                       |
| suggest.py               | the known name that a mistyped one was probably meant to be                          |
| answers/ | Pure: the answer inside a response, and whether it equals the reference |
| reward_terms/ | Pure: reward terms that are computed from a response alone |
| isolation/ | Calls that can be killed, and programs that are not trusted |
| builtin/ | The environments that come with the package |
| adapters/ | Environments of other libraries; each imports its library lazily |
"""

"""Defines what is asked and how responses are scored.

Imports the standard library only; adapters import the library they adapt when they are used.

| file          | what                                                                                  |
|---------------|---------------------------------------------------------------------------------------|
| types.py      | Prompt, Message, Turn, Trajectory, Group, Verdict, Status: cross process boundaries   |
| base.py       | the protocols Environment and Session, demonstrations, play() a policy                |
| catalog.py    | BUILTIN name -> "module:Class", load(), describe(), errors with the nearest name      |
| framing.py    | system message, template and solved examples around any environment's prompts          |
| tasks.py      | for environments of one response: OneReply, held_out, task_random                     |
| checks.py     | checks of constructor arguments, one sentence for each failure                        |
| quoting.py    | values in error messages, shortened where they are long                               |
| suggest.py    | the known name nearest to a mistyped one, for error messages                          |
| answers/      | finds the answer in a response and compares it with the reference                     |
| reward_terms/ | reward terms computed from a response alone                                           |
| isolation/    | calls that can be killed, and a sandbox for untrusted programs                        |
| builtin/      | the environments that come with the package                                           |
| adapters/     | environments of other libraries                                                       |
"""

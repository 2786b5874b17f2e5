"""Adapts environments of other libraries; each adapter imports its library only when it is used.

| file           | what                                                                       |
|----------------|----------------------------------------------------------------------------|
| appworld/      | tasks of AppWorld's apps, a client of its servers                          |
| gym/           | any object with reset and step on text: gymnasium, GEM, TextArena          |
| reasoning_gym/ | task families of reasoning-gym, in a subprocess of their own               |
"""

"""Finds the answer in a response and compares it with the reference.

| file       | what                                                                        |
|------------|-----------------------------------------------------------------------------|
| extract.py | the answer in a response, the program in a response                         |
| grading.py | whether an answer equals the reference: exactly, numerically, symbolically  |
"""

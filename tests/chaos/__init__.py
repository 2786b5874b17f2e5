"""Injects faults into real runs and checks what comes of them.

| file          | what                                                                                  |
|---------------|---------------------------------------------------------------------------------------|
| harness.py    | starts a run as a user does, finds its processes, waits with a bound, ends all of it  |
| faults.py     | kills, freezes and slows processes, fills a disk, corrupts checkpoints                |
| checks.py     | what has to hold of an ending, of rows, of a checkpoint                               |
| scenarios.py  | one row a fault: when, what is expected                                               |
| resuming.py   | the rows about checkpoints, disks and resumes                                         |
| asynchronous.py | the rows of asynchronous runs: every prompt once, within the bound on staleness     |
| storm.py      | many random faults in one run, with the ids of everything that was trained on         |
| elastic.py    | generators that come and go                                                           |
| netns.py      | two network namespaces with a cable between them that can be cut                      |
| two_nodes.py  | nodes that cannot be reached: two of Ray in such namespaces                           |
| soak.py       | memory of every process over thousands of iterations                                  |
| table.py      | `make chaos`: plays the rows and prints what happened                                 |
| test_short.py | what of this `make test` does                                                         |
| test_harness.py, test_checks.py | the parts that need no run |
"""

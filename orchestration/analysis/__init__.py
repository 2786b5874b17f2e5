"""What the numbers of a finished or running run say (pure, no torch).

| file | what |
|---|---|
| checks_control.py | the sentences on what control did |
| checks_entropy.py | the sentences on what entropy did, and why |
| checks_outcome.py | the sentences on what it cost, and on whether the numbers can be trusted |
| diagnosis.py      | what a run's numbers say about its entropy, in sentences |
| findings.py       | what such a sentence is, and the readings they share |
| retention.py      | pure: what a run with stages kept: matrix, transfer, forgetting |
| run_data.py       | a run folder in memory, and its summary in numbers and words |
"""

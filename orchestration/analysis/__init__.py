"""Reads the numbers of a finished or running run and says what they mean (pure, no torch).

| file | what |
|---|---|
| advice.py           | which control a run's numbers ask for |
| control.py          | what steered, off target, saturated and without effect mean, for reports and labs |
| control_findings.py | the findings on what control did |
| diagnosis.py        | all findings of a run, in reading order |
| entropy_findings.py | the findings on what entropy did, and why |
| findings.py         | what a finding is, and the readings and phrases they share |
| outcome_findings.py | the findings on what the run cost, and on whether its numbers can be trusted |
| retention.py        | what a run with stages kept: matrix, transfer, forgetting |
| run_data.py         | a run folder in memory |
| run_summary.py      | its summary in numbers and sentences |
| time_findings.py    | the finding on where the time went |
"""

"""Questions with one answer each, from a file or a data set.

| file | what |
|---|---|
| environment.py | questions and answers from a file or a data set: split, duplicates, overlap, verdict |
| rows.py        | their rows: JSONL, JSON, parquet, saved and hub data sets; AIME, DAPO, GSM8K, MATH |
"""

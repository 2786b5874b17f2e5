"""Asks questions with one answer each, from a file or a data set.

| file           | what                                                                            |
|----------------|---------------------------------------------------------------------------------|
| environment.py | the environment Questions: split, duplicates, overlap, verdict                  |
| rows.py        | rows of question and answer in the formats of AIME, DAPO, GSM8K, MATH and others |
| sources.py     | raw rows of JSONL, JSON and parquet files, saved data sets and the hub          |
"""

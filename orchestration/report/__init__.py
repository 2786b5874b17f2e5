"""Writes report.html: tables, sentences and charts of one run or of several side by side.

| file | what |
|---|---|
| chapters.py          | which charts and findings stand in which chapter or section |
| charts.py            | which numbers of the runs go into which chart |
| page.py              | renders a template of templates/ with assets/ inlined |
| retention_section.py | the section on a run with stages |
| run_report.py        | the report of run folders |
| settings_line.py     | the settings shown under the title |
| summary_table.py     | the tables of run summaries |
| table.py             | one table, written as HTML, Markdown or for the terminal |
| visible.py           | untrusted text made safe to show |

svg/ draws the charts.
"""

"""report.html: pages, sections and charts.

| file | what |
|---|---|
| chapters.py          | what a report shows in which order: chapters of a run, sections of charts |
| charts.py            | which numbers of the runs go into which picture of a report |
| retention_section.py | a report's section on it |
| run_report.py        | one self-contained report.html from run folders |
| svg.py               | pictures as SVG text |
| svg_points.py        | points with error bars, and names that do not cover one another |
"""

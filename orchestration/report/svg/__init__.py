"""Draws charts as SVG text, without a library.

| file | what |
|---|---|
| axes.py   | ranges, round ticks, positions in drawing units |
| marks.py  | lines, bands, points, grid lines and labels |
| charts.py | whole charts: lines over x, scatter, stacked areas |
| points.py | points with error bars, and names that do not cover one another |
"""

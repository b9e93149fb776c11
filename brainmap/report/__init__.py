"""Figures and self-contained HTML: what a person looks at after a run.

`html.Page` is the page every room writes its report with; `style` the look its figures share;
`figures` the pictures of a run and `run_report` the page of a run folder. Nothing here is imported
until a report is written: matplotlib and jinja2 are loaded by the modules that use them.
"""

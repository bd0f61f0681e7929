"""Measure what a network costs and how well it segments, and report both in one place.

`record` is the value of a run and `run.run_benchmark` fills it; `measure/` has a module for each
thing that is measured, `report/` writes a record and a comparison for people and spreadsheets,
`compare` says what two records differ in, and `baselines/` are networks of the literature. Imports
only `edgeseg.runtime`.
"""

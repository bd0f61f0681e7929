"""Measure what a network costs and how well it segments, and report both in one place.

`record.run_benchmark` does everything; the other modules each measure one thing. Imports only
`edgeseg.runtime`.
"""

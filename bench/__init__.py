"""Benchmarks of every claim, paired with what they are measured against; installed as dogo_fast.bench.

``dogo-fast benchmark`` or ``make bench`` runs the suite with pytest-benchmark and records it as JSON; table.py shows a
record as text, page.py makes docs/performance.md of the recorded ones, check.py compares ratios with them.
"""

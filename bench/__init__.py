"""Benchmarks of every claim, paired with what they are measured against; installed as dogo_fast.bench.

``dogo-fast benchmark`` or ``make bench`` runs the suite with pytest-benchmark and records it as JSON; tables.py shows a
record as text. In reports/ page.py makes docs/performance.md of the recorded ones, check.py compares ratios with them.
"""

if __name__ != "dogo_fast.bench":
    # dogo_fast/bench is a link to this folder; under a second name its classes would be others than those in use.
    raise ImportError(f"{__name__} must be imported as dogo_fast.bench")

"""Choosing tiles: by what the compiler makes of them, without a GPU (``python -m dogo_fast.tuning``), and by time on
the GPU at hand (``dogo-fast tune``).

``search`` has the candidates and the choice, given a way to compile and a way to time; ``compiling`` and ``timing`` are
those two. The command: dogo_fast/commands/tune.py. Where the tables lie: dogo_fast/ops/tile_tables.py.
"""

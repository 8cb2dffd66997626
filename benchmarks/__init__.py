"""The benchmarks: `python -m benchmarks` runs all, `python -m benchmarks embedded --rounds 5` one of them.

Every measurement runs in a process of its own (`children.py`); ours and the peers take turns in rounds, so that a
machine that gets slower meanwhile does so for all. Medians are compared with the figures asked (`report.py`) and
written to docs/results, beside a figure of the machine's own speed (`machine.py`).
"""

"""Benchmarks: one module a question; ``python -m benchmarks TOPIC``, then ``python -m benchmarks report``."""

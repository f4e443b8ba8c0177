"""Each op on every backend, by shape and dtype, forward and back: `pytest benchmarks/bench_ops.py`."""

from collections.abc import Callable


def test_ops(compare: Callable[[str, str], None], key: str) -> None:
    compare("ops", key)

"""Opening, reading, batching, and the padding that is left: `pytest benchmarks/bench_data.py`."""

from collections.abc import Callable


def test_data(compare: Callable[[str, str], None], key: str) -> None:
    compare("data", key)

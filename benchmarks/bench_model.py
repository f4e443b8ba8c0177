"""MEA's training step and prediction beside the models of the field: `pytest benchmarks/bench_model.py`."""

from collections.abc import Callable


def test_model(compare: Callable[[str, str], None], key: str) -> None:
    compare("model", key)

"""Each public layer, forward and back; the graph layers beside PyG's: `pytest benchmarks/bench_layers.py`."""

from collections.abc import Callable


def test_layers(compare: Callable[[str, str], None], key: str) -> None:
    compare("layers", key)

"""What several tests of ops share."""

from collections.abc import Iterator

import pytest

from mea_graph.ops.predictive import prediction


@pytest.fixture(params=["folded", "stored"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to the predicted logits, whatever the length; the test fails unless it went that way alone."""
    monkeypatch.setattr(prediction, "SHORT", {"folded": 0, "stored": 10**6}[request.param])
    used = []
    for name in ("Folded", "Stored"):
        kind = getattr(prediction, name)
        monkeypatch.setattr(prediction, name, lambda *args, kind=kind: used.append(kind) or kind(*args))
    yield request.param
    assert {kind.__name__.lower() for kind in used} == {request.param}

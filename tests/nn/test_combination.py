"""Fusing without a graph: what is missing takes no part."""

from typing import Any

import pytest
import torch

from mea_graph.nn import Combination

NAMES = ["text", "audio"]
PRESENT = {"text": torch.tensor([True, True, False]), "audio": torch.tensor([True, False, False])}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("concatenation", [[2.0, 2.0, 3.0, 3.0], [2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        ("addition", [[5.0, 5.0], [2.0, 2.0], [0.0, 0.0]]),
        ("multiplication", [[6.0, 6.0], [2.0, 2.0], [1.0, 1.0]]),
    ],
)
@pytest.mark.parametrize("junk", [7.0, torch.nan])
def test_what_is_missing_takes_no_part_whatever_it_holds(how: Any, expected: list[list[float]], junk: float) -> None:
    given = {}
    for value, m in ((2.0, "text"), (3.0, "audio")):
        given[m] = torch.where(PRESENT[m].unsqueeze(1), value, junk).expand(3, 2).clone().requires_grad_()
    found = Combination(how, 2, NAMES)(given, PRESENT)
    assert found.tolist() == expected
    found.sum().backward()
    for m, x in given.items():
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert not x.grad[~PRESENT[m]].any()


def test_bad_input_is_named() -> None:
    layer, x = Combination("addition", 2, NAMES), {m: torch.zeros(3, 2) for m in NAMES}
    with pytest.raises(ValueError, match=r"x\['audio'\]: expected \(3, 2\), got \(1, 2\)"):
        layer(x | {"audio": torch.zeros(1, 2)}, PRESENT)
    with pytest.raises(ValueError, match=r"x\['text'\]: expected \(3, 2\), got \(3, 4\)"):
        layer(x | {"text": torch.zeros(3, 4)}, PRESENT)
    with pytest.raises(ValueError, match=r"present: expected the modalities \['text', 'audio'\], got \['text'\]"):
        layer(x, {"text": PRESENT["text"]})
    with pytest.raises(ValueError, match=r"present\['audio'\]: expected bool \(3,\), got torch.int64 \(3,\)"):
        layer(x, PRESENT | {"audio": torch.ones(3, dtype=torch.int64)})
    with pytest.raises(TypeError, match="present: expected a dict of one entry a modality, got NoneType"):
        layer(x, None)

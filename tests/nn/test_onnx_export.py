"""The model in ONNX Runtime: the same predictions, at sizes other than those it was exported with."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mea_graph.nn import MEA, export_onnx

WIDTHS = {"audio": 3, "vision": 4}


@pytest.fixture
def model() -> MEA:
    """Every kind of layer, the prediction chain included; weights so large that predictions differ.

    And no larger: in float64, moving every weight by float32's rounding moves these predictions by a twentieth of the tolerance
    below. With a standard deviation of 1 it was up to four times the tolerance: what then passed depended on the processor.
    """
    torch.manual_seed(2)  # a draw whose predictions differ enough
    layers = {"exclusive": {"num_layers": 2}}
    model = MEA(WIDTHS, 1, channels=4, hidden_channels=4, heads=2, dropout=0.5, **layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def batch(lengths: dict[str, list[int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    mask = {m: torch.arange(max([1, *n])) < torch.tensor(n)[:, None] for m, n in lengths.items()}
    return {m: torch.randn(*v.shape, WIDTHS[m]) for m, v in mask.items()}, mask


@pytest.mark.slow
def test_onnxruntime_predicts_the_same(model: MEA, tmp_path: Path) -> None:
    import onnxruntime

    export_onnx(model, tmp_path / "mea.onnx")
    assert model.training
    assert all(module.training for module in model.modules())
    session = onnxruntime.InferenceSession(tmp_path / "mea.onnx")
    model.eval()
    for lengths in (
        {"audio": [5, 2, 7], "vision": [3, 9, 4]},
        {"audio": [0, 1, 20, 3, 0], "vision": [6, 0, 11, 2, 0]},  # a modality missing, and both
        {"audio": [4], "vision": [0]},  # missing in the whole batch
    ):
        x, mask = batch(lengths)
        inputs = {m: v.numpy() for m, v in x.items()} | {f"{m}_mask": v.numpy() for m, v in mask.items()}
        (prediction,) = session.run(["prediction"], inputs)
        expected = model(x, mask).prediction.detach()
        torch.testing.assert_close(torch.from_numpy(prediction), expected, rtol=1e-5, atol=1e-6)
        assert len(lengths["audio"]) == 1 or expected.std() > 5e-3


def test_a_missing_extra_is_named(model: MEA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'extra "onnx": pip install "mea-graph\[onnx\]"'):
        export_onnx(model, tmp_path / "mea.onnx")
    assert not any(tmp_path.iterdir())

"""The model, and a model of a user's own, in ONNX Runtime: the same predictions, at sizes other than those they were exported with."""

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mea_graph.nn import (
    MEA,
    ExclusiveEncoder,
    GraphFusionConv,
    ModalityReinforcementUnit,
    PredictiveSelfAttention,
    UnimodalExtractor,
    export_onnx,
    onnx_export,
    onnx_translations,
)

WIDTHS = {"audio": 3, "vision": 4}


@pytest.fixture
def model() -> MEA:
    """Every kind of layer, the prediction chain included; weights so large that predictions differ.

    And no larger: in float64, moving every weight by float32's rounding moves these predictions by a twentieth of the tolerance
    below. With a standard deviation of 1 it was up to four times the tolerance: what then passed depended on the processor.
    """
    torch.manual_seed(2)  # a draw whose predictions differ enough
    layers = {"exclusive": {"num_layers": 2, "pooling": "gru"}, "agnostic": {"num_layers": 1, "pooling": "gru"}, "head": {"norm": True}}
    positions = {"positions": {"audio": "seconds", "vision": "steps"}}
    model = MEA.published(WIDTHS, 1, channels=4, hidden_channels=4, heads=2, dropout=0.5, extractor=positions, **layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def batch(lengths: dict[str, list[int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    mask = {m: torch.arange(max([1, *n])) < torch.tensor(n)[:, None] for m, n in lengths.items()}
    return {m: torch.randn(*v.shape, WIDTHS[m]) for m, v in mask.items()}, mask


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.13", reason="export_onnx needs torch 2.13")
def test_onnxruntime_predicts_the_same(
    model: MEA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnx_export, "_PATIENCE", 0.0)
    export_onnx(model, tmp_path / "mea.onnx")
    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()  # of our own making, all of them
    assert lines[0] == "export_onnx: tracing the model and translating its operators, a minute or so"
    assert all(line.startswith("export_onnx: ") for line in lines), lines
    assert [str(warning.message) for warning in recwarn] == []
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
        time = torch.rand(mask["audio"].shape).cumsum(1)
        inputs = {m: v.numpy() for m, v in x.items()} | {f"{m}_mask": v.numpy() for m, v in mask.items()} | {"audio_time": time.numpy()}
        (prediction,) = session.run(["prediction"], inputs)
        expected = model(x, mask, time={"audio": time}).prediction.detach()
        torch.testing.assert_close(torch.from_numpy(prediction), expected, rtol=1e-5, atol=1e-6)
        assert len(lengths["audio"]) == 1 or expected.std() > 5e-3


def test_a_missing_extra_is_named(model: MEA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'extra "onnx": pip install "mea-graph\[onnx\]"'):
        export_onnx(model, tmp_path / "mea.onnx")
    with pytest.raises(ImportError, match="onnx_translations needs the extra"):
        onnx_translations()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("none/mea.onnx", "expected a file in an existing folder, got .*; there is no folder"),
        ("file.txt/mea.onnx", "expected a file in an existing folder"),
        (".", "expected a file to write, got the folder"),
        ("mea.onnx", "expected a file in a folder that may be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_at_once(
    model: MEA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, says: str
) -> None:
    (tmp_path / "file.txt").write_text("")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("traced for a minute before"))
    if place == "mea.onnx":  # whoever runs the tests may be allowed to write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (tmp_path, os.W_OK))
    with pytest.raises(OSError, match=f"^file: {says}"):
        export_onnx(model, tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_file_that_was_there(
    model: MEA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    pytest.importorskip("onnxscript")
    from onnxscript import optimizer

    place, seen = tmp_path / "mea.onnx", []
    place.write_bytes(b"before")

    def fails(*_: object) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Program:
        model = None

        class model_proto:
            @staticmethod
            def SerializeToString() -> bytes:
                return b"after"

    for name in ("fold_constants", "remove_unused_nodes"):
        monkeypatch.setattr(optimizer, name, lambda model: None)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program)
    with monkeypatch.context() as broken:
        broken.setattr(os, moment, fails)
        with pytest.raises(OSError, match=r"^file: .*mea\.onnx could not be written \(No space left on device\); make room"):
            export_onnx(model, place)
    assert seen == [["mea.onnx", "mea.onnx.lock", "mea.onnx.writing"]]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("mea.onnx", b"before")]
    export_onnx(model, place)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("mea.onnx", b"after")]


class Own(nn.Module):
    """A model of a user's own: layers that are traced as the package's operators, and layers that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.audio = UnimodalExtractor(3, 8), UnimodalExtractor(2, 8, stride=2)
        self.first, self.second = PredictiveSelfAttention(8, 2, prediction=False), PredictiveSelfAttention(8, 2)
        self.unit = ModalityReinforcementUnit(8, 2)
        self.pool = ExclusiveEncoder(8, 8, pooling="gru")
        self.conv = GraphFusionConv(8, 4, heads=2, activation="none")

    def forward(self, text: Tensor, text_mask: Tensor, audio: Tensor, audio_mask: Tensor, edge_index: Tensor) -> Tensor:
        x, source = self.text(text, text_mask), self.audio(audio, audio_mask)
        x, prior = self.first(x, text_mask)
        x = self.second(x, text_mask, prior)[0]
        x = self.unit(x, text_mask, source=source, source_layout=self.audio.output_layout(audio_mask))
        return self.conv(self.pool(x, text_mask), edge_index)


def inputs_of_own(text: list[int], audio: list[int], edges: int) -> tuple[Tensor, ...]:
    masks = [torch.arange(max(lengths)) < torch.tensor(lengths)[:, None] for lengths in (text, audio)]
    x, y = (torch.randn(*mask.shape, width) for mask, width in zip(masks, (3, 2), strict=True))
    return x, masks[0], y, masks[1], torch.randint(len(text), (2, edges))


@pytest.mark.slow
def test_layers_in_a_model_of_ones_own_are_translated(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model, dim = Own().eval(), torch.export.Dim.AUTO
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    program = torch.onnx.export(
        model,
        inputs_of_own([5, 3, 2], [9, 7, 6], 6),
        dynamic_shapes=(*({0: dim, 1: dim},) * 4, {1: dim}),
        custom_translation_table=onnx_translations(),
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    program.save(tmp_path / "own.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "own.onnx")
    for inputs in (
        inputs_of_own([9, 1], [2, 13], 3),
        inputs_of_own([6], [3], 1),
        inputs_of_own([5, 2, 8, 1, 3], [5, 8, 6, 1, 1], 12),
    ):
        (found,) = session.run(None, {name.name: value.numpy() for name, value in zip(session.get_inputs(), inputs, strict=True)})
        expected = model(*inputs).detach()
        assert expected.std() > 0.01
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-6)


def test_an_old_torch_is_named(model: MEA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1+cpu"))
    with pytest.raises(ImportError, match=r"export_onnx: expected torch 2\.13 or newer, got 2\.9\.1\+cpu"):
        export_onnx(model, tmp_path / "mea.onnx")
    assert not (tmp_path / "mea.onnx").exists()


@pytest.mark.skipif(torch.__version__ < "2.13", reason="export_onnx needs torch 2.13")
@pytest.mark.slow
def test_a_window_in_seconds_is_translated(tmp_path: Path) -> None:
    """ONNX has no searchsorted, by which a step finds the others that are near in time."""
    import onnxruntime

    torch.manual_seed(0)
    exclusive = MEA(WIDTHS, 1, channels=4, heads=2, agnostic=None, discriminator=None, window={"seconds": 0.3})
    export_onnx(exclusive, tmp_path / "window.onnx")
    x, mask = batch({"audio": [9, 4, 0], "vision": [3, 12, 5]})
    time = {m: torch.rand(v.shape).cumsum(1) for m, v in mask.items()}
    with torch.no_grad():
        expected = exclusive.eval()(x, mask, time=time).prediction
    given = {m: v.numpy() for m, v in x.items()}
    given |= {f"{m}_mask": v.numpy() for m, v in mask.items()} | {f"{m}_time": v.numpy() for m, v in time.items()}
    session = onnxruntime.InferenceSession(tmp_path / "window.onnx")
    (found,) = session.run(["prediction"], {i.name: given[i.name] for i in session.get_inputs()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)

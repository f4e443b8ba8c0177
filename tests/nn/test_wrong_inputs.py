"""Frequent mistakes with inputs: each gets one error that names the field, what was expected and what came."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_geometric.data import Batch, HeteroData

from mea_graph.nn import (
    MEA,
    CrossModalEncoder,
    DoubleDiscriminator,
    ExclusiveBranch,
    MEALoss,
    ModalityReinforcementUnit,
    PredictiveEncoder,
    PredictiveSelfAttention,
    UnimodalExtractor,
)
from mea_graph.ops import IntervalEdges, Pointers

PTR = torch.tensor([0, 6, 10])
X = torch.randn(10, 8)
WHOLE, TWO = Pointers.from_ptr(torch.tensor([0, 10])), Pointers.from_ptr(PTR)
ATTENTION = PredictiveSelfAttention(8, heads=2)
NAMES = ["a", "b"]
BOTH, EDGES = dict.fromkeys(NAMES, X), IntervalEdges.complete(WHOLE, WHOLE)
UNIT = ModalityReinforcementUnit(8, heads=2)


def sample(dtype: torch.dtype = torch.float32) -> HeteroData:
    return HeteroData(text={"x": torch.randn(4, 3, dtype=dtype)}, audio={"x": torch.randn(6, 2, dtype=dtype)})


def model(**options: Any) -> MEA:
    return MEA({"text": 3, "audio": 2}, 1, channels=8, heads=2, **options)


def without_x() -> Batch:
    batch = Batch.from_data_list([sample()])
    del batch["audio"].x
    return batch


LAYERS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: ATTENTION(X, [0, 6, 10]), TypeError, "x: expected the ptr of rows or a mask of padding as a Tensor, or Pointers, got list"),
    (
        lambda: torch.nn.Sequential(ATTENTION, ATTENTION)(X),
        TypeError,
        "x: expected a Tensor, got tuple; a layer that returns several values returns the sequence first",
    ),
    (lambda: ATTENTION(X.double(), PTR), TypeError, "x: expected torch.float32, the dtype of the weights, got torch.float64"),
    (lambda: UNIT(X, PTR, source=X.double(), source_layout=PTR), TypeError, r"source\[0\]: expected torch.float32"),
    (lambda: UnimodalExtractor(8, 4)(X.double(), PTR), TypeError, "x: expected torch.float32"),
    (lambda: ATTENTION(X, PTR, X), TypeError, "prior: expected the Prior that the layer before returned, got Tensor"),
    (lambda: PredictiveSelfAttention(8, heads=2.0), ValueError, r"heads: expected a divisor of channels = 8, got 2\.0"),
    (lambda: IntervalEdges.window(TWO, TWO, steps=1.5), TypeError, r"steps: expected an integer, got 1\.5"),
    (lambda: IntervalEdges.window(TWO, TWO, steps=True), TypeError, "steps: expected an integer, got True"),
    (lambda: IntervalEdges.window(TWO, TWO, seconds="1"), TypeError, "seconds: expected a number, got '1'"),
    (lambda: IntervalEdges.window(PTR, TWO, steps=1), TypeError, "source: expected Pointers, which Pointers.from_ptr makes, got Tensor"),
    (lambda: IntervalEdges.complete(PTR, TWO), TypeError, r"sources\[0\]: expected Pointers"),
    (lambda: IntervalEdges.complete(TWO, PTR), TypeError, "target: expected Pointers"),
    (lambda: PredictiveEncoder(["text", "audio"], 8), TypeError, "modalities: expected a list of names, got 8"),
    (lambda: CrossModalEncoder(8, "text"), TypeError, "modalities: expected a list of names, got 'text'"),
    (
        lambda: PredictiveEncoder(8, NAMES, 2)(BOTH, edges=EDGES),
        TypeError,
        "edges: expected a dict of edges by modality, got IntervalEdges",
    ),
    (lambda: CrossModalEncoder(8, NAMES, 2)(BOTH, edges=EDGES), TypeError, "edges: expected a dict of edges by pair .*, got IntervalEdges"),
    (lambda: CrossModalEncoder(8, NAMES, 2)(BOTH, edges={"ab": EDGES}), ValueError, r"edges: expected pairs of \['a', 'b'\], got \['ab'\]"),
    (lambda: ExclusiveBranch(8, 8, NAMES, 2)(BOTH, edges={"a": EDGES}), ValueError, r"edges: expected pairs of \['a', 'b'\], got \['a'\]"),
    (
        lambda: ExclusiveBranch(8, 8, NAMES, 2)(BOTH, edges={("a", "c"): EDGES}),
        ValueError,
        r"edges: expected pairs of \['a', 'b'\], got \[\('a', 'c'\)\]",
    ),
    (lambda: DoubleDiscriminator(5, NAMES)(BOTH, None), ValueError, r"exclusive\['a'\]: expected \(B, 5\), got \(10, 8\)"),
]

MODEL: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: model()(Batch.from_data_list([sample(torch.float64)])), TypeError, "text: expected torch.float32, .* got torch.float64"),
    (lambda: model()([sample()]), TypeError, "x: expected a PyG batch, .* got list; Batch.from_data_list makes a batch"),
    (lambda: model()(torch.randn(2, 4, 3)), TypeError, r"x: expected a PyG batch, .* got a tensor \(2, 4, 3\)"),
    (lambda: model()(without_x()), ValueError, r"batch\['audio'\]: expected x, the rows of its steps"),
    (lambda: model()({"text": X[:, :3], "audio": None}), TypeError, r"audio: expected a Tensor, got NoneType; a sequence without steps is"),
    (lambda: model()({"text": X[:, :3]}), ValueError, r"x: expected the modalities .* got \['text'\]; a modality that no sample has is"),
    (lambda: model()({"text": X, "audio": X, "gaze": X}), ValueError, r"x: expected the modalities .* got .*'gaze'\]$"),
    (lambda: model()({"text": X, "audio": X}, PTR), TypeError, r"layout: expected a dict of one entry a modality, got a tensor \(3,\)"),
    (
        lambda: model(window={"seconds": 1.0})(Batch.from_data_list([sample()])),
        ValueError,
        r"batch\['text'\].time: expected seconds \(4,\), one a step, which a window or positions in seconds need, got None",
    ),
]


@pytest.mark.parametrize(("wrong", "kind", "says"), LAYERS + MODEL)
def test_a_mistake_is_named(wrong: Callable[[], object], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        wrong()


def test_edges_between_other_samples_are_refused() -> None:
    """They fit the rows, so steps would silently hear those of another sample."""
    edges = IntervalEdges.window(WHOLE, WHOLE, steps=2)
    with pytest.raises(ValueError, match=r"edges: expected edges between samples of lengths \[6, 4\], got those of 1 samples"):
        ATTENTION(X, PTR, edges=edges)
    with pytest.raises(ValueError, match=r"edges: expected edges between samples of lengths \[6, 4\]"):
        UNIT(X, PTR, source=X, source_layout=PTR, edges=IntervalEdges.complete(WHOLE, WHOLE))
    moved = Pointers.from_ptr(torch.tensor([0, 5, 10]))
    with pytest.raises(ValueError, match=r"got those of 2 samples of lengths \[5, 5\]"):
        ATTENTION(X, PTR, edges=IntervalEdges.window(moved, moved, causal=True))
    own = Pointers.from_ptr(PTR.clone())  # another object that says the same
    ATTENTION(X, PTR, edges=IntervalEdges.window(own, own, steps=2))


def test_float64_is_taken_by_a_model_of_float64() -> None:
    assert model().double()(Batch.from_data_list([sample(torch.float64)])).prediction.dtype == torch.float64


@pytest.mark.parametrize(
    ("task", "target", "kind", "says"),
    [
        ("regression", torch.tensor([1.0, torch.nan]), ValueError, "target: expected finite numbers, got nan in sample 1 of the batch"),
        ("regression", torch.tensor([torch.inf, 1.0]), ValueError, "target: expected finite numbers, got inf in sample 0"),
        ("regression", [1.0, 2.0], TypeError, "target: expected a Tensor, got list"),
        ("multilabel", torch.tensor([[1.0], [2.0]]), ValueError, r"target: expected labels in \[0, 1\], got 2 in sample 1"),
    ],
)
def test_a_wrong_target_is_named(task: Any, target: Any, kind: type[Exception], says: str) -> None:
    output = model()(Batch.from_data_list([sample(), sample()]))
    with pytest.raises(kind, match=says):
        MEALoss(task)(output, target)


def test_a_loss_of_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="output: expected the MEAOutput of a model, got Tensor; task_loss takes a prediction alone"):
        MEALoss()(torch.randn(2, 1), torch.randn(2))

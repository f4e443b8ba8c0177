"""A user's own program: `test_typing.py` has type checkers read it. It is not run."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.loader import DataLoader
from typing_extensions import assert_type

from mea_graph import baselines, data, ops, train, viz
from mea_graph import nn as layers


class Network(nn.Module):
    """A model that holds layers of the package, written as for `mypy --strict`."""

    def __init__(self, widths: dict[str, int], channels: int = 8) -> None:
        super().__init__()
        self.extractors = nn.ModuleDict({m: layers.UnimodalExtractor(width, channels, stride=2) for m, width in widths.items()})
        self.encoder = layers.PredictiveEncoder(channels, widths, heads=2)
        self.cross = layers.CrossModalEncoder(channels, widths, heads=2, num_layers=1)
        self.pool = layers.ExclusiveEncoder(channels, channels, pooling="gru")
        self.fuse = layers.DecoupledGraphFusion(channels, spaces=["exclusive"])

    def forward(self, x: dict[str, Tensor], ptr: dict[str, Tensor]) -> Tensor:
        z = {m: extractor(x[m], ptr[m]) for m, extractor in self.extractors.items()}
        predicted = self.encoder.forward(z, ptr)
        assert_type(predicted, layers.PredictiveEncoderOutput)
        heard = self.cross.forward(predicted.x, ptr)
        assert_type(heard, layers.CrossModalEncoderOutput)
        pooled = {m: self.pool.forward(v, ptr[m]) for m, v in heard.x.items()}
        graph = layers.fusion_graph(pooled, None)
        assert_type(graph, layers.FusionGraph)
        fused = self.fuse.forward(graph.x_dict, graph.edge_index_dict, graph.sample_dict, graph.num_samples)
        assert_type(fused, layers.FusedRepresentations)
        return fused.x["exclusive"]


def attention(x: Tensor, edge_index: Tensor, wanted: bool) -> None:
    conv = layers.GraphFusionConv((-1, -1), 16, heads=2, activation="none")
    assert_type(conv.forward((x, None), edge_index), Tensor)
    assert_type(conv.forward(x, edge_index, return_attention_weights=False), Tensor)
    _, (_, weights) = conv.forward(x, edge_index, return_attention_weights=True)
    assert_type(weights, Tensor)
    either = conv.forward(x, edge_index, return_attention_weights=wanted)
    assert_type(either if isinstance(either, Tensor) else either[0], Tensor)


def rows(x: Tensor, mask: Tensor) -> None:
    pointers = ops.Pointers.from_mask(mask)
    extractor = layers.UnimodalExtractor(3, 8, stride=2)
    assert_type(extractor.output_layout(pointers), ops.Pointers)
    assert_type(extractor.output_layout(mask), Tensor)
    assert_type(pointers.sample, Tensor)
    edges = ops.IntervalEdges.window(pointers, pointers, steps=3, causal=True)
    assert_type(edges.edge_index(), Tensor)
    assert_type(ops.interval_attention(x, x, x, edges), Tensor)
    assert_type(ops.predictive_attention(x, x, x, pointers, edges=edges), Tensor)
    assert_type(ops.segment_sum(x, ptr=torch.tensor([0, 2])), Tensor)
    with ops.use_backend("reference"), ops.record_calls() as calls:
        print(ops.explain(ops.interval_attention, x, x, x, edges).chosen, calls["interval_attention", "cpu"])


def whole(batch: HeteroData, target: Tensor) -> Tensor:
    model = layers.MEA({"text": 300, "audio": 74}, 1)
    output = model.forward(batch)
    assert_type(output, layers.MEAOutput)
    assert_type(model.fuse(model.embed(batch)).prediction, Tensor)
    terms = layers.MEALoss("regression", alpha=0.1).forward(output, target)
    assert_type(terms, layers.LossTerms)
    layers.export_onnx(model, "mea.onnx")
    torch.onnx.export(model.extractors, custom_translation_table=layers.onnx_translations(), dynamo=True)
    assert_type(viz.modality_weights(output), Figure)
    return terms.total


def samples() -> None:
    dataset = data.MultimodalDataset.from_arrays({"a": [np.zeros((3, 2))], "b": [np.zeros((5, 1))]}, y=[0.5])
    assert_type(dataset[0], HeteroData)
    assert_type(dataset[:1], data.MultimodalDataset)
    assert_type(dataset.select("train").channels, dict[str, int])
    events = data.AsynchronousEvents(num_samples=4).standardize()
    assert_type(events[[0, 1]], data.AsynchronousEvents)
    sampler = data.LengthBucketBatchSampler(events.lengths, batch_size=2)
    for batch in DataLoader(events, batch_sampler=sampler):
        data.check_batch(batch)
    assert_type(data.open_dataset("mine.npz"), data.MultimodalDataset)
    assert_type(data.MOSI, data.Preset)


def trained() -> None:
    module = train.MEAModule({"a": 2, "b": 1}, "regression", 1, learning_rate=0.01)
    assert_type(module, train.MEAModule)
    train.SequenceDataModule(source="mine.npz", batch_size=4).setup("fit")
    assert_type(train.regression_metrics(torch.zeros(3), torch.zeros(3)), dict[str, Tensor])
    baseline = baselines.LateFusionGRU({"a": 2, "b": 1}, 1)
    assert_type(baseline.forward({}, {}, 2), Tensor)
    assert_type(baselines.constant_prediction(torch.zeros(3), "regression", 1), Tensor)
    assert_type(viz.score_bars({"MEA": [0.5]}, "mae"), Figure)


class Mine(train.MEAModule):
    """A subclass, as users write them."""

    def loss_terms(self, output: layers.MEAOutput, target: Tensor) -> dict[str, Tensor]:
        return super().loss_terms(output, target)

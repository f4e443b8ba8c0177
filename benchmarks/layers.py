"""Each public layer over a batch of MOSI, checked against float64; the graph layers beside PyG's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import HEADS as K
from benchmarks.cases import WIDTH, Case, graph, step
from benchmarks.measure import Pass
from benchmarks.samples import CHANNELS, Kind, Samples, Shape, draw
from mea_graph import nn as mea
from mea_graph.ops import Pointers, use_backend

D, D_H = K * WIDTH, 64
MODALITIES = tuple(CHANNELS)
Inputs = dict[str, Tensor]
Layouts = dict[str, Any]  # ptr or Pointers
Layer = tuple[
    nn.Module, Callable[[nn.Module, Inputs, Layouts], list[Tensor]]
]  # the layer, and how it is called on rows with their ptr: its outputs


def _sequences(samples: Samples) -> Inputs:
    """Rows of the layers' width, as the layers before would give them."""
    generator = torch.Generator().manual_seed(7)
    return {m: torch.randn(len(x), D, generator=generator).to(x.device) for m, x in samples.x_dict.items()}


def _vectors(x: Inputs, ptr: Layouts, step: int = 0) -> Inputs:
    """One vector a sample: its row of that number."""
    return {m: v.index_select(0, (ptr[m].start if isinstance(ptr[m], Pointers) else ptr[m][:-1]) + step) for m, v in x.items()}


def _fuse(layer: nn.Module, x: Inputs, ptr: Layouts) -> list[Tensor]:
    h = _vectors(x, ptr)
    made = mea.fusion_graph(h, h)
    return list(layer(made.x_dict, made.edge_index_dict, made.sample_dict, made.num_samples).x.values())


def _chain(layer: nn.Module, x: Inputs, ptr: Layouts) -> list[Tensor]:
    first, prior = layer(x["vision"], ptr["vision"])
    return [layer(first, ptr["vision"], prior)[0]]


def _reinforce(layer: nn.Module, x: Inputs, ptr: Layouts) -> list[Tensor]:
    return [layer(x["vision"], ptr["vision"], source=[x["text"], x["audio"]], source_layout=[ptr["text"], ptr["audio"]])]


def _discriminate(layer: nn.Module, x: Inputs, ptr: Layouts) -> list[Tensor]:
    return [t for t in layer(_vectors(x, ptr), _vectors(x, ptr, 1)) if t is not None]


# by name: the layer at the paper's widths, and its call. Vision is the longest sequence.
LAYERS: dict[str, Callable[[], Layer]] = {
    "UnimodalExtractor": lambda: (mea.UnimodalExtractor(D, D), lambda f, x, ptr: [f(x["vision"], ptr["vision"])]),
    "FeedForward": lambda: (mea.FeedForward(D), lambda f, x, ptr: [f(x["vision"])]),
    "PredictiveSelfAttention, two in a chain": lambda: (mea.PredictiveSelfAttention(D, K), _chain),
    "WeightedAttention": lambda: (
        mea.WeightedAttention(D, MODALITIES),
        lambda f, x, ptr: list(f(x, ptr)[0].values()),
    ),
    "PredictiveEncoder": lambda: (mea.PredictiveEncoder(D, MODALITIES, K), lambda f, x, ptr: list(f(x, ptr)[0].values())),
    "ModalityReinforcementUnit": lambda: (mea.ModalityReinforcementUnit(D, K), _reinforce),
    "HierarchicalCrossModalAttention": lambda: (
        mea.HierarchicalCrossModalAttention(D, MODALITIES, K),
        lambda f, x, ptr: list(f(x, ptr)[0].values()),
    ),
    "CrossModalEncoder": lambda: (mea.CrossModalEncoder(D, MODALITIES, K), lambda f, x, ptr: list(f(x, ptr)[0].values())),
    "ExclusiveEncoder": lambda: (mea.ExclusiveEncoder(D, D_H), lambda f, x, ptr: [f(x["vision"], ptr["vision"])]),
    "AgnosticEncoder": lambda: (mea.AgnosticEncoder(D, D_H), lambda f, x, ptr: [f(v, ptr[m]) for m, v in x.items()]),
    "DoubleDiscriminator": lambda: (mea.DoubleDiscriminator(D, MODALITIES), _discriminate),
    "DecoupledGraphFusion": lambda: (mea.DecoupledGraphFusion(D), _fuse),
}


def layer(name: str, shape: Shape, title: str, size: int, kind: Kind, device: str = "cpu") -> Case:
    """Forward and backward of one layer. There is no baseline: it shows what each part of MEA costs."""
    torch.manual_seed(0)
    samples = draw(shape, size, kind, device=device)
    ptr: Layouts = dict(samples.ptr_dict)
    if device != "cpu":  # as a PyG batch says them: without the longest length every layer would wait for the device
        ptr = {m: Pointers.from_ptr(p, len(samples.x_dict[m]), max(samples.lengths[m])) for m, p in ptr.items()}
    x = {m: v.requires_grad_() for m, v in _sequences(samples).items()}
    module, call = LAYERS[name]()
    module.to(device)
    given: list[Tensor] = []

    def run(f: nn.Module, inputs: Inputs) -> list[Tensor]:
        f.zero_grad()
        outs = [o for o in call(f, inputs, ptr) if o.requires_grad]
        leaves = [*inputs.values(), *f.parameters()]
        if not given:  # once: a pass that is timed neither draws them nor sends them to a device
            generator = torch.Generator().manual_seed(8)
            given.extend(torch.randn(o.shape, generator=generator).to(o.device) for o in outs)
        grads = [g.to(o) for g, o in zip(given, outs, strict=True)]
        found = torch.autograd.grad(outs, leaves, grads, allow_unused=True)
        used = [g.flatten() for g in found[len(inputs) :] if g is not None]
        return [*(o.detach() for o in outs), *(g for g in found[: len(inputs)] if g is not None), *([torch.cat(used)] if used else [])]

    def truth() -> list[Tensor]:
        with use_backend("reference"):
            return run(deepcopy(module).double(), {m: v.detach().double().requires_grad_() for m, v in x.items()})

    about = {"padding_share": round(samples.trimmed().padding_share, 4), "samples": size}
    return Case(f"{name}, {title}, B {size}, {kind}", {"mea_graph": lambda: run(module, x)}, ["mea_graph"], truth, torch.float32, {}, about)


def _joined(run: Pass, inputs: int) -> list[Tensor]:
    """The output, the gradients of the inputs, and those of all parameters as one vector: the one of a score's bias is next to nothing."""
    found = run()
    return [*found[: 1 + inputs], torch.cat([g.flatten() for g in found[1 + inputs :]])]


def fusion(size: int, device: str = "cpu") -> Case:
    """`DecoupledGraphFusion` over the fusion graph of a batch beside PyG's layers for heterogeneous graphs, of the same width."""
    from torch_geometric.nn import GATConv, HeteroConv, HGTConv

    torch.manual_seed(0)
    h = {m: torch.randn(size, D_H).to(device) for m in MODALITIES}
    made = mea.fusion_graph(h, h)
    leaves = {n: v.detach().clone().requires_grad_() for n, v in made.x_dict.items()}
    edges, batch = made.edge_index_dict, made.sample_dict
    ours = mea.DecoupledGraphFusion(D_H).to(device)
    gat = HeteroConv({t: GATConv((D_H, D_H), D_H, add_self_loops=False) for t in edges}).to(device)
    hgt = HGTConv(D_H, D_H, (list(leaves), list(edges))).to(device)
    cotangent = torch.randn(size, D_H).to(device)

    def fused(f: nn.Module, x: Inputs) -> Tensor:
        return torch.stack(list(f(x, edges, batch, size).x.values())).sum(0)

    def summed(f: nn.Module) -> Callable[..., Tensor]:  # the baselines return nodes; every modality has one a sample
        return lambda *_: torch.stack(list(f(leaves, edges).values())).sum(0)

    def passes(f: nn.Module, forward: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
        return step(forward, [*leaves.values(), *(p for p in f.parameters())], cotangent)

    def truth() -> list[Tensor]:
        wide = deepcopy(ours).double()
        x = {n: v.detach().double().requires_grad_() for n, v in leaves.items()}
        with use_backend("reference"):
            return _joined(step(lambda *_: fused(wide, x), [*x.values(), *wide.parameters()], cotangent.double()), len(x))

    contenders = {
        "mea_graph": passes(ours, lambda *_: fused(ours, leaves)),
        "HeteroConv of GATConv": passes(gat, summed(gat)),
        "HGTConv": step(summed(hgt), [*leaves.values(), *(p for n, p in hgt.named_parameters() if "k_rel" not in n)], cotangent),
    }
    name = f"DecoupledGraphFusion, fusion graph of {size} samples with 6 nodes, d {D_H}"
    seen = {"mea_graph": lambda: _joined(contenders["mea_graph"], len(leaves))}
    return Case(name, contenders, ["mea_graph"], truth, torch.float32, seen, {"samples": size})


def conv(name: str, heads: int, channels: int = D_H) -> Case:
    """`GraphFusionConv` beside PyG's attention layers of the same width and heads."""
    from torch_geometric.nn import GATConv, TransformerConv

    torch.manual_seed(0)
    edge_index, nodes = graph(name)
    x, cotangent = torch.randn(nodes, channels).requires_grad_(), torch.randn(nodes, heads * channels)
    ours = mea.GraphFusionConv(channels, channels, heads, activation="none")
    layers = {
        "mea_graph": ours,
        "GATConv": GATConv(channels, channels, heads, add_self_loops=False),
        "TransformerConv": TransformerConv(channels, channels, heads),
    }
    contenders = {n: step(lambda *_, f=f: f(x, edge_index), [x, *f.parameters()], cotangent) for n, f in layers.items()}

    def truth() -> list[Tensor]:
        wide, leaf = deepcopy(ours).double(), x.detach().double().requires_grad_()
        with use_backend("reference"):
            return step(lambda *_: wide(leaf, edge_index), [leaf, *wide.parameters()], cotangent.double())()

    return Case(f"GraphFusionConv, {name}, {heads} x {channels}", contenders, ["mea_graph"], truth, torch.float32)

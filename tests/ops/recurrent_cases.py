"""Sets of sequences, and what torch's own Bi-LSTM or Bi-GRU makes of one sample after the other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mea_graph.ops import Pointers
from mea_graph.ops.recurrent import bigru, bilstm

Tensors = dict[str, Tensor]


class Case(NamedTuple):
    hidden: int
    channels: tuple[int, ...]  # of each set
    lengths: tuple[tuple[int, ...], ...]
    layer: type[nn.LSTM] | type[nn.GRU] = nn.LSTM

    def inputs(self, dtype: torch.dtype = torch.float64) -> Tensors:
        """Steps without gaps and weights, by name, and the gradient of the result."""
        found: Tensors = {}
        for m, (width, lengths) in enumerate(zip(self.channels, self.lengths, strict=True)):
            found[f"x{m}"] = torch.randn(sum(lengths), width)
            for w, weight in enumerate(self.layer(width, self.hidden, bidirectional=True).parameters()):
                found[f"w{m}.{w}"] = weight.detach() * 2
        found["grad"] = torch.randn(sum(map(sum, self.lengths)), 2 * self.hidden)
        return {name: t.to(dtype) for name, t in found.items()}


CASES = {
    "20 wide": Case(20, (40,), ((5, 1, 3),)),
    "empty samples": Case(5, (3,), ((0, 4, 0, 1, 0),)),
    "three sets": Case(20, (3, 4, 3), ((3, 0), (7, 1), (1, 9))),
    "sets of as many steps": Case(5, (3, 3, 3), ((2, 3), (4, 1), (0, 5))),
    "sets of as many steps, not as wide": Case(5, (3, 4), ((2, 3), (4, 1))),
    "one channel": Case(1, (1,), ((2,),)),
    "33 wide": Case(33, (8,), ((4, 2),)),
    "64 wide": Case(64, (8,), ((3, 1),)),
    "no step at all": Case(4, (3, 3), ((0, 0), (0, 0))),
    "a set without a step": Case(4, (3, 3), ((2, 1), (0, 0))),
    "no sample": Case(4, (3,), ((),)),
}
GRUS = {f"GRU, {name}": case._replace(layer=nn.GRU) for name, case in CASES.items()}


def outcome(case: Case, inputs: Tensors, pointers: Sequence[Pointers] | None = None, backend: str = "auto") -> Tensors:
    """The result, and the gradients of what came in."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items() if name != "grad"}
    sets = range(len(case.channels))
    x = [leaves[f"x{m}"] for m in sets]
    weights = [[leaves[f"w{m}.{w}"] for w in range(8)] for m in sets]
    if pointers is None:
        pointers = [Pointers.from_ptr(torch.tensor([0, *lengths]).cumsum(0)) for lengths in case.lengths]
    op = bilstm if case.layer is nn.LSTM else bigru
    out = torch.cat(op(x, weights, pointers, backend=backend))
    return {"result": out.detach()} | dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), inputs["grad"]), strict=True))


def truth(case: Case, inputs: Tensors) -> Tensors:
    """By torch's own layer, in float64."""
    leaves = {name: t.detach().double().requires_grad_() for name, t in inputs.items() if name != "grad"}
    results = [leaves["x0"].new_zeros(0, 2 * case.hidden, requires_grad=True)]
    for m, lengths in enumerate(case.lengths):
        layer = case.layer(case.channels[m], case.hidden, batch_first=True, bidirectional=True).double()
        weights = {name: leaves[f"w{m}.{w}"] for w, (name, _) in enumerate(layer.named_parameters())}
        for sample in leaves[f"x{m}"].split(list(lengths)):
            if len(sample):
                results.append(torch.func.functional_call(layer, weights, (sample.unsqueeze(0),))[0][0])
    out = torch.cat(results)
    grads = torch.autograd.grad(out, list(leaves.values()), inputs["grad"].double(), allow_unused=True, materialize_grads=True)
    return {"result": out.detach()} | dict(zip(leaves, grads, strict=True))

import torch
import torch.nn.functional as F
from torch_geometric.nn import Aggregation

from mea_graph.nn import MEA

torch.manual_seed(0)
x = {m: torch.randn(64, 20, 1) * torch.rand(64, 1, 1) * 2 for m in ("left", "right")}
spread = {m: steps.amax(1) - steps.amin(1) for m, steps in x.items()}
y = (spread["left"] - spread["right"]).abs()  # how differently two signals swing


class Spread(Aggregation):
    def forward(self, x, index=None, ptr=None, dim_size=None, dim=-2):
        high = self.reduce(x, index, ptr, dim_size, dim, reduce="max")
        return high + self.reduce(-x, index, ptr, dim_size, dim, reduce="max")


def loss_with(aggr):
    torch.manual_seed(0)
    branch = {"num_layers": 0, "pooling": aggr}  # from the steps to a representation
    fusion = {"aggr": aggr}  # from the representations to one vector a sample
    branches = {"exclusive": branch, "agnostic": branch}
    sizes = {"channels": 8, "hidden_channels": 8, "heads": 2, "dropout": 0.0}
    model = MEA(dict.fromkeys(x, 1), 1, fusion=fusion, **branches, **sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(50):
        loss = F.mse_loss(model(x).prediction, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


own, mean = loss_with(Spread()), loss_with("mean")
print(f"loss {own:.3f} with Spread, {mean:.3f} with means; variance {y.var():.3f}")
assert own < 0.2 * mean

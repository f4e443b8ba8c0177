import torch
import torch.nn.functional as F
from matplotlib.figure import Figure  # extra viz
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
        prediction = model(x).prediction
        loss = F.mse_loss(prediction, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prediction.detach(), loss.item()


figure = Figure(figsize=(4, 3.6), dpi=150, layout="constrained")
names = {"xlabel": "how differently they swing", "ylabel": "predicted"}
axis = figure.subplots(subplot_kw=names)
axis.axline((0, 0), slope=1, color="0.6")
found, own = loss_with(Spread())
axis.plot(y, found, "o", label="Spread")
found, mean = loss_with("mean")
axis.plot(y, found, "x", label="mean")
axis.legend()
figure.savefig("own_aggregation.png")
print(f"loss {own:.3f} with Spread, {mean:.3f} with means; variance {y.var():.3f}")
assert own < 0.2 * mean

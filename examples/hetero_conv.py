import torch
import torch.nn.functional as F
from matplotlib.figure import Figure  # extra viz
from torch_geometric.data import Batch, HeteroData
from torch_geometric.nn import GATConv, HeteroConv, SAGEConv

from mea_graph.nn import MEA, GraphFusionConv
from mea_graph.ops import segment_mean

torch.manual_seed(0)


def sample():
    data = HeteroData(text={"x": torch.randn(6, 4)}, audio={"x": torch.randn(9, 3)})
    data.y = data["audio"].x[:, :1].mean(0) * 3  # only the sound knows the answer
    return data


batch = Batch.from_data_list([sample() for _ in range(32)])
model = MEA({"text": 4, "audio": 3}, 1, channels=8, hidden_channels=8, heads=2)
kinds = {"self": GATConv, "mixed": SAGEConv, "fine": SAGEConv, "to": GraphFusionConv}
types = [t for t in model.embed(batch).edge_types if t[1] in kinds]
conv = HeteroConv({t: kinds[t[1]](8, 8) for t in types})
score = torch.nn.Linear(8, 1)
parts = torch.nn.ModuleList([model, conv, score])
optimizer = torch.optim.Adam(parts.parameters(), lr=0.01)
losses = []
for _ in range(40):
    graph = model.embed(batch).expand()
    words = conv(graph.x_dict, graph.edge_index_dict)["text"]  # only words are read
    prediction = score(segment_mean(words, graph["text"].sample, 32)).squeeze(1)
    losses.append(F.mse_loss(prediction, batch.y))
    optimizer.zero_grad()
    losses[-1].backward()
    optimizer.step()

figure = Figure(figsize=(4.6, 3.8), dpi=120, layout="constrained")
axis, nodes = figure.subplots(), list(graph.node_types)
for number, (kind, conv) in enumerate(kinds.items()):
    pairs = [(nodes.index(s), nodes.index(t)) for s, name, t in types if name == kind]
    heights = torch.tensor(pairs).T + 0.15 * (kind == "mixed")  # beside the others
    look = {"color": f"C{number}", "marker": ">", "markevery": [1]}
    axis.plot((0, 1), heights, **look)[0].set_label(f"{conv.__name__} on {kind}")
axis.set_xticks((0, 1), ("from", "to"))
axis.set_yticks(range(len(nodes)), nodes)
axis.tick_params(labelright=True)
figure.legend(loc="outside lower center", ncols=2, frameon=False)
figure.savefig("hetero_conv.png")

print(f"loss {losses[-1]:.3f}, variance {batch.y.var():.3f}")
assert losses[-1] < 0.2 * batch.y.var()

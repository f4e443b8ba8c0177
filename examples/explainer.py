import networkx
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure  # extra viz
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.nn import Sequential

from mea_graph.nn import GraphFusionConv, fusion_graph

torch.manual_seed(0)
names = ["text", "audio", "video", "pulse"]
kind = torch.eye(4).unsqueeze(1).expand(4, 64, 4)  # each vector names its modality
x = {m: torch.cat([torch.randn(64, 2), kind[i]], 1) for i, m in enumerate(names)}
graph = fusion_graph(x, None)
plain = graph.to_homogeneous()
text, answer = plain.node_type == 0, x["pulse"][:, 0]  # the pulse knows it

conv = GraphFusionConv(6, 8, activation="none")
steps = [(conv, "x, edge_index -> x"), torch.nn.Linear(8, 1), torch.nn.Flatten(0)]
net = Sequential("x, edge_index", steps)
optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
for _ in range(150):
    optimizer.zero_grad()
    F.mse_loss(net(plain.x, plain.edge_index)[text], answer).backward()
    optimizer.step()

config = {"mode": "regression", "task_level": "node", "return_type": "raw"}
how = {"explanation_type": "model", "edge_mask_type": "object", "model_config": config}
explainer = Explainer(net, GNNExplainer(epochs=100, lr=0.1), **how)
mask = explainer(plain.x, plain.edge_index, index=text).edge_mask
pairs = [(s.split("_")[0], t.split("_")[0]) for s, _, t in graph.edge_types]
found = {pair: mask[plain.edge_type == i].mean().item() for i, pair in enumerate(pairs)}

figure = Figure(figsize=(3.6, 3.6), dpi=150)
look = {"node_size": 2400, "node_color": "white", "edgecolors": "black", "margins": 0.25}
look |= {"with_labels": True, "width": [0.2 + 5 * mean for mean in found.values()]}
drawn, place = networkx.DiGraph(pairs), networkx.circular_layout(names)
networkx.draw(drawn, place, figure.add_axes((0, 0, 1, 1)), edgelist=pairs, **look)
figure.savefig("explainer.png")

planted = found.pop(("pulse", "text"))
print(f"pulse to text {planted:.2f}, all other edges at most {max(found.values()):.2f}")
assert planted > 3 * max(found.values())

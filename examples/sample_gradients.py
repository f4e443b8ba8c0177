import torch
import torch.nn.functional as F
from matplotlib.figure import Figure  # extra viz
from torch.func import functional_call, grad, vmap

from mea_graph.nn import MEA

torch.manual_seed(0)
x = {"text": torch.randn(16, 4, 4), "audio": torch.randn(16, 6, 3)}
y = x["audio"].mean((1, 2)).unsqueeze(1) * 3
y[5] += 6  # a wrong label
model = MEA({"text": 4, "audio": 3}, 1, channels=8, heads=2, dropout=0.0)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(20):
    optimizer.zero_grad()
    F.mse_loss(model(x).prediction, y).backward()
    optimizer.step()


def loss_of(parameters, x, y):  # of one sample
    one = {m: steps.unsqueeze(0) for m, steps in x.items()}
    return (functional_call(model, parameters, (one,)).prediction[0] - y).square().sum()


parameters = {name: p.detach() for name, p in model.named_parameters()}
each = vmap(grad(loss_of), in_dims=(None, 0, 0))(parameters, x, y)  # (16, ...) by name

optimizer.zero_grad()
F.mse_loss(model(x).prediction, y).backward()
for name, p in model.named_parameters():
    if not name.startswith("discriminator"):  # which takes no part in the prediction
        torch.testing.assert_close(each[name].mean(0), p.grad, rtol=1e-3, atol=1e-5)

norms = torch.cat([g.flatten(1) for g in each.values()], 1).norm(dim=1)
times = norms.max() / norms.median()
print(f"sample {norms.argmax()} pulls hardest, {times:.0f} times the usual")

figure = Figure(figsize=(4, 3), dpi=150, layout="constrained")
names = {"xlabel": "sample", "ylabel": "norm of its gradient"}
axis = figure.subplots(subplot_kw=names)
axis.bar(range(16), norms.tolist(), color="0.6")
axis.bar(5, norms[5].item(), color="C3", label="wrong label")
axis.set_xticks(range(0, 16, 5))
axis.legend()
figure.savefig("sample_gradients.png")
assert norms.argmax() == 5

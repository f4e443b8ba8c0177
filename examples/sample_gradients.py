import torch
from mea_graph.nn import MEA
from torch.func import functional_call, grad, vmap

torch.manual_seed(0)
x = {"text": torch.randn(16, 4, 4), "audio": torch.randn(16, 6, 3)}
y = x["audio"].mean((1, 2)) * 3
y[5] += 3  # a wrong label
model = MEA({"text": 4, "audio": 3}, 1, channels=8, hidden_channels=8, heads=2, dropout=0.0)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(20):
    loss = torch.nn.functional.mse_loss(model(x).prediction.squeeze(1), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def loss_of(parameters, x, y):
    one = {m: own.unsqueeze(0) for m, own in x.items()}
    return (functional_call(model, parameters, (one,)).prediction.squeeze() - y).square()


parameters = {name: p.detach() for name, p in model.named_parameters()}
each = vmap(grad(loss_of), in_dims=(None, 0, 0))(parameters, x, y)  # (16, ...) by name
optimizer.zero_grad()
torch.nn.functional.mse_loss(model(x).prediction.squeeze(1), y).backward()
for name, p in model.named_parameters():
    if p.grad is not None:
        torch.testing.assert_close(each[name].mean(0), p.grad, rtol=1e-3, atol=1e-5)

norms = torch.cat([g.flatten(1) for g in each.values()], 1).norm(dim=1)
print(norms)
assert norms.argmax() == 5

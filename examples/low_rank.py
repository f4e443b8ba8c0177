import torch
import torch.nn.functional as F

from mea_graph.nn import MEA
from mea_graph.viz import learning_curves

torch.manual_seed(0)


class LowRank(torch.nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Linear(base.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)  # the model begins as it was

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


x = {"text": torch.randn(32, 6, 4), "audio": torch.randn(32, 9, 3)}
y = x["audio"].mean((1, 2)).unsqueeze(1) * 3
model = MEA({"text": 4, "audio": 3}, 1, channels=32, heads=4, dropout=0.0)
model.requires_grad_(False)
before = model(x).prediction
for parent in list(model.modules()):
    for name, child in list(parent.named_children()):
        if isinstance(child, torch.nn.Linear):
            setattr(parent, name, LowRank(child))

trained = [p for p in model.parameters() if p.requires_grad]
share = sum(p.numel() for p in trained) / sum(p.numel() for p in model.parameters())
optimizer = torch.optim.Adam(trained, lr=0.01)
losses = []
for _ in range(30):
    loss = F.mse_loss(model(x).prediction, y)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

curves = {"the old model": losses[:1] * 30, f"{share:.0%} of the weights trained": losses}
learning_curves({"loss": curves}).savefig("low_rank.png")
print(f"{share:.0%} of the weights: loss from {losses[0]:.3f} to {losses[-1]:.3f}")
assert share < 0.1
assert losses[-1] < 0.2 * losses[0]

for part in model.modules():  # without the low ranks the model is the old one
    if isinstance(part, LowRank):
        torch.nn.init.zeros_(part.up.weight)
assert torch.allclose(model(x).prediction, before, atol=1e-5)

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure  # extra viz

from mea_graph.nn import PredictiveSelfAttention
from mea_graph.ops import segment_mean

torch.manual_seed(0)


class Transformer(torch.nn.Module):
    def __init__(self, words, channels=32):
        super().__init__()
        self.embed = torch.nn.Embedding(words, channels)
        self.first = PredictiveSelfAttention(channels, heads=4, prediction=False)
        self.second = PredictiveSelfAttention(channels, heads=4, mu=0.25)
        self.score = torch.nn.Linear(channels, 1)

    def forward(self, tokens, ptr):
        x, prior = self.first(self.embed(tokens), ptr)
        x, _ = self.second(x, ptr, prior)  # predicts its map from the first one's
        return self.score(segment_mean(x, ptr=ptr)).squeeze(1)


def sentences(n):  # does a sentence hold a word and its opposite, w and w + 8?
    ptr = F.pad(torch.randint(3, 8, (n,)).cumsum(0), (1, 0))
    tokens = torch.randint(16, (int(ptr[-1]),))
    parts = [part.tolist() for part in tokens.split(ptr.diff().tolist())]
    return tokens, ptr, torch.tensor([any(w + 8 in part for w in part) for part in parts])


model = Transformer(words=16)
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
for _ in range(150):
    tokens, ptr, answer = sentences(64)
    optimizer.zero_grad()
    F.binary_cross_entropy_with_logits(model(tokens, ptr), answer.float()).backward()
    optimizer.step()

tokens, ptr, answer = sentences(500)
right = ((model(tokens, ptr) > 0) == answer).float().mean()
print(f"{right:.0%} of the new sentences are judged right")

every = model.embed(torch.arange(16))  # one sentence with every word once
weights = model.first(every, return_attention_weights=True)[2][0].amax(0)  # of the heads
figure = Figure(figsize=(3.6, 3.6), dpi=150, layout="constrained")
axis = figure.subplots(subplot_kw={"xlabel": "heard", "ylabel": "hears"})
axis.imshow(weights.detach().numpy(), cmap="Greys")
axis.set_xticks(range(16), "abcdefghABCDEFGH")  # A is the opposite of a
axis.set_yticks(range(16), "abcdefghABCDEFGH")
figure.savefig("transformer.png")
assert right > 0.95

import torch
import torch.nn.functional as F

from mea_graph.nn import ModalityReinforcementUnit, PredictiveSelfAttention
from mea_graph.ops import IntervalEdges, Pointers

torch.manual_seed(0)
STEPS, WORDS, CHANNELS = 6, 8, 32


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS + 1, CHANNELS)  # the last marks the start
        self.place = torch.nn.Parameter(torch.randn(STEPS, CHANNELS))
        self.own = PredictiveSelfAttention(CHANNELS, heads=4, prediction=False)
        self.read = ModalityReinforcementUnit(CHANNELS, heads=4)
        self.score = torch.nn.Linear(CHANNELS, WORDS)

    def forward(self, written, source):
        layout = Pointers.from_ptr(torch.arange(len(source) + 1) * STEPS)
        past = IntervalEdges.window(layout, layout, causal=True)
        x = (self.words(written) + self.place).flatten(0, 1)
        memory = (self.words(source) + self.place).flatten(0, 1)
        x, _ = self.own(x, layout, edges=past)
        x = self.read(x, layout, source=memory, source_layout=layout)
        return self.score(x).view(len(source), STEPS, WORDS)


model = Decoder()
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
for _ in range(150):
    source = torch.randint(WORDS, (32, STEPS))
    wanted = source.flip(1)  # the sentence backwards
    written = F.pad(wanted[:, :-1], (1, 0), value=WORDS)
    scores = model(written, source).flatten(0, 1)
    optimizer.zero_grad()
    F.cross_entropy(scores, wanted.flatten()).backward()
    optimizer.step()

source, written = torch.randint(WORDS, (100, STEPS)), torch.full((100, STEPS + 1), WORDS)
for i in range(STEPS):  # word by word, each from those written before
    written[:, i + 1] = model(written[:, :-1], source)[:, i].argmax(1)
right = (written[:, 1:] == source.flip(1)).float().mean()
print(f"{right:.0%} of the words are right")
assert right > 0.95

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure  # extra viz

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
        reading = {"source": memory, "source_layout": layout}
        x, heard = self.read(x, layout, **reading, return_attention_weights=True)
        return self.score(x).view(len(source), STEPS, WORDS), heard


model = Decoder()
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
for _ in range(150):
    source = torch.randint(WORDS, (32, STEPS))
    wanted = source.flip(1)  # the sentence backwards
    written = F.pad(wanted[:, :-1], (1, 0), value=WORDS)
    scores = model(written, source)[0].flatten(0, 1)
    optimizer.zero_grad()
    F.cross_entropy(scores, wanted.flatten()).backward()
    optimizer.step()

source, written = torch.randint(WORDS, (100, STEPS)), torch.full((100, STEPS + 1), WORDS)
for i in range(STEPS):  # word by word, each from those written before
    scores, heard = model(written[:, :-1], source)
    written[:, i + 1] = scores[:, i].argmax(1)
right = (written[:, 1:] == source.flip(1)).float().mean()
print(f"{right:.0%} of the words are right")

figure = Figure(figsize=(3.6, 3.6), dpi=150, layout="constrained")
names = {"xlabel": "word of the source", "ylabel": "word written"}
axis = figure.subplots(subplot_kw=names)
mean = heard.mean((0, 1)).detach()  # over the sentences and heads
axis.imshow(mean.numpy(), cmap="Greys")
axis.set_xticks(range(STEPS), range(1, STEPS + 1))
axis.set_yticks(range(STEPS), range(1, STEPS + 1))
figure.savefig("decoder_layer.png")
assert right > 0.95

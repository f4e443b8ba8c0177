import torch
from torch_geometric.data import Batch, HeteroData

from mea_graph.nn import MEA
from mea_graph.viz import attention_map

torch.manual_seed(0)
RATES = {"motion": 8.0, "sweat": 4.0, "heart": 1.0, "blood": 16.0}  # steps a second


def recording(seconds):
    data = HeteroData()
    for sensor, rate in RATES.items():
        data[sensor].time = torch.arange(int(rate * seconds)) / rate
        data[sensor].x = torch.randn(len(data[sensor].time), 2)
    return data


batch = Batch.from_data_list([recording(20), recording(12.5)])
options = {"channels": 16, "heads": 4, "window": {"seconds": 1.5}}
model = MEA(dict.fromkeys(RATES, 2), 1, **options).eval()
output = model(batch, return_attention_weights=True)
seconds = {m: batch[0][m].time for m in RATES}
figure = attention_map(output, ("fine", "motion", "heart"), time=seconds)
figure.set_size_inches(5, 4)  # its letters can be read on a phone too
figure.savefig("sensors.png")

weights = output.cross_modal_attention[0]["fine", "motion", "heart"][0].mean(0)
apart = (seconds["heart"].unsqueeze(1) - seconds["motion"]).abs()
print(f"a beat hears {(weights > 0).sum(1).max()} of {apart.size(1)} steps of motion")
assert torch.equal(weights > 0, apart <= 1.5)

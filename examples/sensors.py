import torch
from torch_geometric.data import Batch, HeteroData

from mea_graph.nn import MEA
from mea_graph.ops import IntervalEdges, Pointers
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
steps = {m: Pointers.from_ptr(batch[m].ptr) for m in RATES}
near = {}
for source in RATES:
    for target in RATES:
        times = {"source_time": batch[source].time, "target_time": batch[target].time}
        pair = steps[source], steps[target]
        near[source, target] = IntervalEdges.window(*pair, seconds=1.5, **times)

model = MEA(dict.fromkeys(RATES, 2), 1, channels=16, heads=4).eval()
output = model(batch, edges=near, return_attention_weights=True)
attention_map(output, ("fine", "motion", "heart")).savefig("sensors.png")

weights = output.cross_modal_attention[0]["fine", "motion", "heart"][0].mean(0)
heart, motion = (batch[0][m].time for m in ("heart", "motion"))
apart = (heart.unsqueeze(1) - motion).abs()
print(f"a beat hears {(weights > 0).sum(1).max()} of {len(motion)} steps of motion")
assert torch.equal(weights > 0, apart <= 1.5)

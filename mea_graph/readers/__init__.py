"""One reader a file format; `mea_graph.data.open_dataset` chooses among them."""

import mea_graph.data  # noqa: F401 (first, for it imports the readers: each can then be imported by itself)

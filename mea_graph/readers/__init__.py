"""One reader a file format; `mea_graph.data.open_dataset` chooses among them."""

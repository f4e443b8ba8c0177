"""`mea-graph check`: whether the kernels are right on this machine. Each backend of each op is compared with the reference in float64."""

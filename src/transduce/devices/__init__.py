"""The machine: devices, CPU threads, CUDA graphs, and their names."""

"""The machine: its device, threads, captured graphs, and what it is called."""

"""The run folder, and what fills it: train, fit, resume."""

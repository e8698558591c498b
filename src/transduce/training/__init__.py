"""Loss, optimizers, one step, the training loop, several processes."""

"""The lesson `norm_and_depth`: layer normalization, residual connections, and how deep they let a network be."""

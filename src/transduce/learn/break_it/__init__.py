"""The lesson `break_it`: ten bugs from real bug reports, and the laws that tell them."""

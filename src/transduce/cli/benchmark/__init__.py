"""What `transduce benchmark` measures."""

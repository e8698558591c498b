"""The lesson `transformer`, chapter 4: the position-wise feed-forward network."""

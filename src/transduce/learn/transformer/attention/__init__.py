"""The lesson `transformer`, chapters 1 and 2: attention and its heads."""

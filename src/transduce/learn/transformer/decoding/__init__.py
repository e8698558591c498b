"""The lesson `transformer`, chapters 8 and 9: training and decoding."""

"""The lesson `transformer`, chapters 6 and 7: the whole network and its masks."""

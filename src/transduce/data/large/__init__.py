"""Corpora that do not fit in memory, prepared on disk once."""

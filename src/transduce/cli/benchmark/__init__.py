"""Subcommand `benchmark`: training and decoding speed."""

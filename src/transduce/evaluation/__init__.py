"""Metrics with intervals, paired tests, and the scores of a predictor."""

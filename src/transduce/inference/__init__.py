"""Search, sampling, output constraints, the fast engine, the predictor, and explanations."""

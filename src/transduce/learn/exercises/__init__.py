"""The exercises of the notebooks, one module each: checkers with hints, solutions, and answers to be rejected."""

"""The lesson `why_it_matters`: the paper's reasons, measured beside recurrent networks."""

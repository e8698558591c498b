"""The lesson `training_recipe`: section 5 of the paper, one change at a time."""

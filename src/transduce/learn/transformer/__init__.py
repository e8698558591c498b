"""The lesson `transformer`, the main notebook: `lesson` is all that it uses; four of its chapters have a folder."""

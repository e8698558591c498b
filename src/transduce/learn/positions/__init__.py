"""The lesson `positions`: what attention cannot know, and how sinusoids tell it."""

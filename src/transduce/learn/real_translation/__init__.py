"""The lesson `real_translation`: a translator of captions, and what its scores say."""

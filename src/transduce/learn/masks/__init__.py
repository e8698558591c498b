"""The lesson `masks`: who may look where, and what happens without."""

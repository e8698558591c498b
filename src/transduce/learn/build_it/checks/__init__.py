"""Checkers of the thirteen pieces of `build_it`: each compares with torch or the naive form, and names the mistake."""

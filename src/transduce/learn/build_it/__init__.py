"""The lesson `build_it`: a Transformer in thirteen pieces, their checkers and pictures."""

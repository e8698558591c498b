"""Text to ids and back: characters, words, BPE, unigram, and the pieces of imported models."""

"""Tokenizers: characters, words, BPE, unigram, and SentencePiece for imported models."""

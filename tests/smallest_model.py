"""The settings of a model that takes no time: characters, one layer on each side."""

SMALLEST_MODEL = """
[tokenizer]
source = "characters"
target = "characters"
[model]
d_model = 16
d_ff = 24
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
"""

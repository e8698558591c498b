"""What holds for every test: annotated shapes are checked at each call, and one thread adds up in one order."""

import torch
from jaxtyping import install_import_hook

# Before any of them is imported: the hook rewrites a module while it loads.
install_import_hook(
    ["transduce.model", "transduce.loss", "transduce.decoding", "transduce.data"], typechecker="beartype.beartype"
)
torch.set_num_threads(1)

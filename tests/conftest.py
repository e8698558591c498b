"""What holds for every test: annotated shapes are checked at each call, and one thread adds up in one order."""

import gc
import os
import signal

# Before torch looks. Of processes that tests start, too; and threads that are out of work do not spin.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

import torch

from shapes import check_shapes_in

pytest_plugins = ["sampling"]

if not torch.cuda.is_available():  # before Triton looks: without a GPU its kernels are interpreted
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # it warns where this is not set

# Before CTranslate2 looks: on CPUs without VNNI its other products of bytes overflow, and int8 cannot be judged.
os.environ["CT2_USE_MKL"] = "1"

# Before any of them is imported: the hook rewrites a module while it loads.
CHECKED = [
    "model",
    "training.loss",
    "inference.search",
    "inference.beam_search",
    "inference.engine",
    "inference.state",
    "inference.forced_decoding",
    "inference.attention_maps",
    "data.batches",
    "inference.explain",
]
check_shapes_in([f"transduce.{name}" for name in CHECKED])
torch.set_num_threads(1)
# What is imported stays, and tests leave little behind: looking for it took a tenth of their time.
gc.freeze()
gc.set_threshold(100_000, 20, 20)
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # begun in the background of a shell: no child would hear a Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` ignores it

# %% [markdown]
# # Build it: a Transformer in thirteen pieces
#
# In this workshop you write the encoder-decoder Transformer of [*Attention Is All You Need*](https://arxiv.org/abs/1706.03762) yourself, in
# about 120 lines of plain PyTorch, and teach it to pronounce English. It takes an evening. At the end the model that this package ships
# loads *your* parameters and gives the same outputs, up to rounding: what you wrote is what ships.
#
# **How each step goes.** A picture. An example in numbers, always the same three tokens: *the cat sleeps*, with four channels each. A
# cell to write in. A checker that compares your code with PyTorch's and names the mistake. Then you break your code once, on purpose, to
# see what the checker sees.
#
# The ideas are explained in [the main notebook](transformer.ipynb); its chapters send you here, step by step, under the same names.
# `hint("build-attention")` helps in three stages, `solution("build-attention")` shows one way to write it. Below each step stands what a
# run *with the solutions* gave, so that you can compare.
#
# You need PyTorch's tensors, `@`, and how an `nn.Module` looks: `__init__` makes the parts, `forward` uses them. Of `torch.nn` you may use
# `Module`, `ModuleList`, `Parameter`, `Linear`, `Embedding` and `Dropout`: everything else is yours to write.

# %%
import math
import time

import torch
from torch import nn

from transduce.learn import Ledger, check, hint, solution
from transduce.learn.build_it import SpokenWords, picture, ready, run, shipped

PAD, BEGIN, END = 0, 1, 2  # ids that stand for no token of a text

# %% [markdown]
# ## 1 · Attention
#
# Every token asks a question, its **query**, and every token has a **key** to be found by and a **value** to hand over. The score of a query
# and a key is their product, divided by $\sqrt{d_k}$, the root of their number of channels. The softmax turns the scores of one query into
# weights that add up to 1, and the output is the mixture of the values in those weights.
#
# In the picture queries, keys and values are the three tokens themselves.

# %%
picture("attention")


# %% [markdown]
# *By hand:* "the" scores (1, 0, 0.5), so its weights are proportional to $e^1, e^0, e^{0.5}$: 0.51, 0.19, 0.31.
#
# **Write it.** `q` is (..., T, d_k), `k` and `v` are (..., S, d_k); `may_look` is True where a query may look at a key, and broadcasts to
# (..., T, S). A hidden key must get weight 0.


# %% tags=["piece-1"]
def attention(q, k, v, may_look):
    ...  # not written yet: three lines


# %%
check("build-attention", attention)

# %% tags=["with-solutions"]
run("attention", attention)

# %% [markdown]
# *Break it once.* Take out the division by $\sqrt{d_k}$, or hide keys *after* the softmax. Run the checker; then repair it.
#
# ## 2 · Heads
#
# One mixture answers one question. Several **heads** ask several: each gets its own slice of the channels. This is a matter of shapes alone:
# (B, T, D) becomes (B, H, T, D / H) and back, for B sentences, T tokens, D channels, H heads.

# %%
picture("heads")


# %% [markdown]
# **Write it.** Head 1 gets the first D / H channels of every token.


# %% tags=["piece-2"]
def split_heads(x, num_heads):
    ...  # not written yet: one line


def join_heads(x):
    ...  # not written yet: one line


# %%
check("build-heads", (split_heads, join_heads))

# %% tags=["with-solutions"]
run("heads", split_heads, join_heads)

# %% [markdown]
# *Break it once.* `x.view(B, H, T, D // H)` has the right shape. What is wrong with it?
#
# ## 3 · Multi-head attention
#
# Queries, keys and values are made from the tokens by three learned matrices (each an `nn.Linear`); a fourth one mixes what the heads
# found. The tokens that ask (`x`) and those that are looked at (`memory`) may be the same, *self-attention*, or not: the decoder asks, the
# source answers.

# %%
picture("multi-head")


# %% [markdown]
# **Write it.** The four are called `query`, `key`, `value` and `output`, each from `d_model` to `d_model`; `self.num_heads` keeps the
# number of heads.


# %% tags=["piece-3"]
class MultiHead(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        ...  # not written yet: the number of heads and four nn.Linear

    def forward(self, x, memory, may_look):
        ...  # not written yet: three lines


# %%
check("build-multi-head", MultiHead)

# %% tags=["with-solutions"]
run("multi-head", MultiHead)

# %% [markdown]
# In this example the four matrices change nothing, so that you can follow the heads: compare with the picture.
#
# *Break it once.* Make keys and values from `x`. In self-attention nobody would notice.
#
# ## 4 · Sinusoids
#
# Attention does not know in which order its tokens came. So each position gets a vector of its own, which is added: pairs of a sine and a
# cosine, hands of clocks that turn ever more slowly. Clock $c$, channels $2c$ and $2c + 1$, has the angle $pos / 10000^{2c/d}$.

# %%
picture("sinusoids")


# %% [markdown]
# *By hand:* position 1, first pair: sin 1 = 0.84, cos 1 = 0.54.
#
# **Write it.** A table of (length, d_model): sine in the even channels, cosine in the odd ones.


# %% tags=["piece-4"]
def sinusoids(length, d_model):
    ...  # not written yet: three lines


# %%
check("build-sinusoids", sinusoids)

# %% tags=["with-solutions"]
run("sinusoids", sinusoids)

# %% [markdown]
# *Break it once.* Give every channel a clock of its own, with the angle $pos / 10000^{j/d}$ for channel $j$.
#
# ## 5 · Layer normalization
#
# Each sub-layer's output is added to its input (step 7), and such sums grow. Layer normalization brings the channels of each token back to
# mean 0 and variance 1, then lets the network choose another scale: a learned `gain` (1 at the start) and `bias` (0 at the start) for each
# channel.

# %%
picture("layer-norm")


# %% [markdown]
# *By hand:* "the" is (1, 0, 1, 0): mean ½, deviation ½, so (1, −1, 1, −1).
#
# **Write it.** The variance is the *mean* of the squares, and 10⁻⁵ is added to it before the root: a token whose channels are all equal
# would give 0/0.


# %% tags=["piece-5"]
class LayerNorm(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        ...  # not written yet: gain and bias

    def forward(self, x):
        ...  # not written yet: three lines


# %%
check("build-layer-norm", LayerNorm)

# %% tags=["with-solutions"]
run("layer-norm", LayerNorm)

# %% [markdown]
# *Break it once.* Use `x.std()`, which divides by d − 1.
#
# ## 6 · Feed-forward network
#
# Attention collects; this network works on what was collected, each token by itself: up to `d_ff` channels, negative numbers to 0, back
# down.

# %%
picture("feed-forward")


# %% [markdown]
# *By hand:* the two middle channels ask "is the second channel above 1?" and "is the fourth?". "cat" answers yes to the first.
#
# **Write it.** Two `nn.Linear`, `up` and `down`.


# %% tags=["piece-6"]
class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        ...  # not written yet: two nn.Linear

    def forward(self, x):
        ...  # not written yet: one line


# %%
check("build-feed-forward", FeedForward)

# %% tags=["with-solutions"]
run("feed-forward", FeedForward)

# %% [markdown]
# *Break it once.* Leave out the ReLU. Why are two matrices in a row then worth no more than one?
#
# ## 7 · Encoder layer
#
# Two **sub-layers**, attention and the feed-forward network. Around each stands the same frame,
# $\mathrm{LayerNorm}(x + \text{sub-layer}(x))$: what comes in is added to what comes out, so a layer only has to find what to *change*. In
# training, dropout sets a part of the sub-layer's output to 0 before the sum.

# %%
picture("encoder-layer")


# %% [markdown]
# **Write it.** The parts: `attention`, `feed_forward`, `norm_1`, `norm_2`, and a `dropout`.


# %% tags=["piece-7"]
class EncoderLayer(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, dropout):
        super().__init__()
        ...  # not written yet: five parts

    def forward(self, x, may_look):
        ...  # not written yet: two lines


# %%
check("build-encoder-layer", EncoderLayer)

# %% tags=["with-solutions"]
run("encoder-layer", EncoderLayer)

# %% [markdown]
# The parameters are random here, so these numbers mean nothing yet. The shape does: layers can be stacked.
#
# *Break it once.* Normalize first, `x + f(norm(x))`. That is called pre-norm, and it is a good network, but not the paper's.
#
# ## 8 · Decoder layer
#
# The decoder writes the target, one token after the other. Its layer has three sub-layers: self-attention that sees only what is already
# written, **cross-attention** that looks at the encoder's output, and the feed-forward network.

# %%
picture("decoder-layer")


# %% [markdown]
# **Write it.** The parts: `self_attention`, `cross_attention`, `feed_forward`, `norm_1`, `norm_2`, `norm_3`, `dropout`.


# %% tags=["piece-8"]
class DecoderLayer(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, dropout):
        super().__init__()
        ...  # not written yet: seven parts

    def forward(self, x, memory, may_look_back, may_look_at_source):
        ...  # not written yet: three lines


# %%
check("build-decoder-layer", DecoderLayer)

# %% tags=["with-solutions"]
run("decoder-layer", DecoderLayer)

# %% [markdown]
# *Break it once.* Leave out cross-attention. Such a decoder still learns something: which words are frequent, and which follow which.
#
# ## 9 · Masks
#
# Two things must not be seen. **Padding**, which only fills the shorter rows of a batch. And the **future**: in training the decoder is given
# the whole target at once, and a token that saw the next one would only learn to copy it.

# %%
picture("masks")


# %% [markdown]
# **Write it.** `padding_mask` of ids (B, S): True at real tokens, shaped (B, 1, 1, S), the same for all heads and queries. `causal_mask`:
# (T, T), True on and below the diagonal.


# %% tags=["piece-9"]
def padding_mask(ids):
    ...  # not written yet: one line


def causal_mask(length):
    ...  # not written yet: one line


# %%
check("build-masks", (padding_mask, causal_mask))

# %% tags=["with-solutions"]
run("masks", padding_mask, causal_mask)

# %% [markdown]
# *Break it once.* Hide a token from itself as well, `tril(-1)`: the first one can look nowhere, and softmax has nothing to normalize.
#
# ## 10 · The network
#
# Ids become vectors by a table, the **embedding**, times $\sqrt{d_\text{model}}$, plus the sinusoids. The encoder reads the source; the
# decoder turns the target so far into one vector for each position; its product with every row of the target's embedding gives a **logit**
# for every token that may come next: the higher, the more probable.

# %%
picture("transformer")


# %% [markdown]
# **Write it.** The parts: `src_embedding`, `tgt_embedding`, `encoder` and `decoder` (ModuleLists of `num_layers` layers), `dropout` (after
# the sum of embedding and position). `padding_mask(src)` goes to the encoder and to cross-attention, `causal_mask` to the decoder's
# self-attention. Start the embeddings small, `embedding.weight.data *= d_model**-0.5`: their rows serve as the output matrix, too.


# %% tags=["piece-10"]
class Transformer(nn.Module):
    def __init__(self, num_source_ids, num_target_ids, d_model, num_heads, d_ff, num_layers, dropout):
        super().__init__()
        ...  # not written yet: two embeddings, two stacks of layers, dropout

    def embed(self, ids, embedding):
        ...  # not written yet: two lines

    def encode(self, src):
        ...  # not written yet: source ids to the encoder's output

    def decode(self, tgt_in, memory, src):
        ...  # not written yet: target ids so far and memory to logits

    def forward(self, src, tgt_in):
        ...  # not written yet: one line


# %%
check("build-transformer", Transformer)

# %% tags=["with-solutions"]
run("transformer", Transformer)

# %% [markdown]
# The checker gave your parameters to the shipped model and compared the logits.
#
# *Break it once.* Write `x + sinusoids(...)` without keeping the sum. It runs, and even learns.
#
# ## 11 · Shift, padding, loss
#
# To learn, the decoder is *given* BEGIN and the target, and has to *name* the target and END: the same row, one step later. The **loss** is
# $-\ln p$ of the probability $p$ that each right token got, averaged over the real tokens. Its unit is the *nat*; a model that guesses evenly
# among $n$ tokens has a loss of $\ln n$.

# %%
picture("loss")


# %% [markdown]
# **Write it.** `batch_of` takes pairs of lists of ids, appends END to the sources, and gives three padded tensors: `src`, `tgt_in`,
# `tgt_out`.


# %% tags=["piece-11"]
def batch_of(pairs):
    ...  # not written yet: padding on the right, BEGIN, END


def loss_of(logits, tgt_out):
    ...  # not written yet: three lines


# %%
check("build-loss", (batch_of, loss_of))

# %% tags=["with-solutions"]
run("loss", batch_of, loss_of)

# %% [markdown]
# *Break it once.* Give the decoder `tgt_out` instead of `tgt_in`. Your loss will never have been so good.
#
# ## 12 · The training loop
#
# A step: take pairs, compute the loss, let the gradient flow back, move the parameters a little against it. **Adam** chooses the size of
# the move for each parameter by its recent gradients. The learning rate rises for a while (the *warm-up*), because early gradients say
# little, then falls to 0.

# %%
picture("train")


# %% [markdown]
# **Write it.** Use `torch.optim.Adam` with the paper's `betas=(0.9, 0.98), eps=1e-9`. At step $s$ of $n$, counted from 1, with $w$ steps of
# warm-up, the rate is the highest rate times the smaller of $s / w$ and $(n - s + 1) / (n - w)$. Call `next_pairs()` at every step; return
# the list of losses.


# %% tags=["piece-12"]
def train(model, next_pairs, steps, learning_rate, warmup_steps):
    ...  # not written yet: eleven lines


# %%
check("build-train", train)

# %% tags=["with-solutions"]
run("train", train)

# %% [markdown]
# *Break it once.* Forget `zero_grad`.
#
# ## 13 · Greedy decoding
#
# Now the model writes by itself: given BEGIN, take the most likely next token, append it, ask again, until END.

# %%
picture("greedy-decode")


# %% [markdown]
# **Write it.** For all rows of `src` at once, `max_len` steps; cut each row at its first END. Return lists of ids, without BEGIN and END.


# %% tags=["piece-13"]
@torch.no_grad()
def greedy_decode(model, src, max_len):
    ...  # not written yet: seven lines


# %%
check("build-greedy-decode", greedy_decode)

# %% tags=["with-solutions"]
run("greedy-decode", greedy_decode)

# %% [markdown]
# *Break it once.* Take the logits of the *first* position, `[:, 0]`.
#
# ## Your Transformer learns to speak English
#
# The task: letters in, phonemes out. The model learns from 92,938 words of the CMU Pronouncing Dictionary that have a single pronunciation;
# 500 others are kept apart. There is no rule that always holds, so nobody gets all of them right: *through*, *cough* and *bough* are for
# learning by heart.

# %%
words = SpokenWords.load()
steps = min(3_000, len(words.train) // 30)

# %% tags=["with-solutions"]
if ready():
    torch.manual_seed(1)
    model = Transformer(words.num_letters, words.num_phonemes, 96, 4, 192, 2, 0.0)
    started = time.perf_counter()
    losses = train(model, words.next_pairs, steps, learning_rate=3e-3, warmup_steps=steps // 10)
    seconds = time.perf_counter() - started
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps:,} steps, {seconds:.0f} s")
    print(f"loss at the start {losses[0]:.2f}, at the end {sum(losses[-20:]) / 20:.3f} nats a phoneme")

# %% tags=["with-solutions"]
if ready():
    model.eval()  # no dropout from here on
    src, _, _ = batch_of(words.test)
    outputs = greedy_decode(model, src, max_len=25)
    print(words.score(outputs))
    print(words.show(outputs))

# %% [markdown]
# The score is the percentage of unseen words without a single wrong phoneme, with its 95% interval. (Chapter 11 of the main notebook tests
# other words, with several pronunciations among them: the two scores do not compare.)
#
# **Compared with what came before.** Recurrent networks read and write step by step. The GRU is one kind (chapter 10 of the main
# notebook). Two of them as large as your model, one plain and one with attention, were trained in the same loop on the same pairs for the
# same time on one core, each at the best of three learning rates (that takes 20 minutes, so it was measured before):

# %%
Ledger.load().recorded("workshop-beside-a-gru")

# %%
Ledger.load().recorded("workshop-beside-a-gru-with-attention")

# %% [markdown]
# ## What you wrote is what ships
#
# The Transformer of this package has the same parts under other names. It takes your parameters:

# %% tags=["with-solutions"]
if ready():
    model.double()
    ours = shipped(model)
    src, tgt_in, _ = batch_of(words.test)
    with torch.no_grad():
        difference = (ours.logits(ours(src, tgt_in)) - model(src, tgt_in)).abs()[tgt_in != PAD].max()
    print(f"largest difference between its logits and yours: {difference:.1e}")
    print("That is rounding: sinusoids are float32 (7 digits), the rest is float64 (16).")

# %% [markdown]
# What it has that yours has not is speed (a cache of keys and values, batches of like length, exact resuming), and a `transduce fit` around
# it. What it computes is yours.
#
# **Where to go on.** [The main notebook](transformer.ipynb) measures why each piece is there; [break it](break_it.ipynb) hides ten bugs for
# you to find; `transduce fit pairs.tsv` trains on your own pairs.

# %% [markdown]
# # Masks: who may look where, and what goes wrong without them
#
# Chapter 7 of [the main notebook](transformer.ipynb) introduces the masks and their laws. Here we remove the masks,
# one after the other, and watch what happens. One of the two broken models has *better* numbers than the correct one.
#
# **In this package a mask is `True` where attention may look.** Other libraries use the opposite convention; section
# 5 covers this.

# %%
import math

import torch
import torch.nn.functional as F

from transduce.learn import Ledger, check, guessed, hint, solution, source_of, surgery
from transduce.learn.masks import experiments, pictures
from transduce.learn.masks.exercises import PAD, SOURCE, TARGET, six_masks
from transduce.learn.tasks import batch_of, reversal
from transduce.model import attention, causal_mask, padding_mask

ledger = Ledger.load()

# %% [markdown]
# ## 1. Three attentions, two masks
#
# | attention | who looks (queries) | at what (keys) | mask | why |
# |---|---|---|---|---|
# | encoder self-attention | source | source | padding of the **source** | padding is not a word |
# | decoder self-attention | target so far | target so far | causal | the future is what the model must predict |
# | cross-attention | target | source | padding of the **source**, again | the keys are the source's |
#
# The rule behind the table: **a mask belongs to the keys.** It is made from the ids of the tokens that are looked
# *at*. (The paper mentions only the causal mask, in section 3.2.3; padding only arises with batches.)
#
# **Math.** Let $s_{ij} = q_i \cdot k_j / \sqrt{d_k}$ be the score of query $i$ and key $j$, and let $M_{ij}$ be true
# where $i$ may look at $j$:
#
# $$w_{ij} = \frac{M_{ij}\, e^{s_{ij}}}{\sum_{j'} M_{ij'}\, e^{s_{ij'}}}
#   \qquad\text{the same as}\qquad \mathrm{softmax}_j\big(s_{ij} + b_{ij}\big),\quad
#   b_{ij} = 0 \text{ if } M_{ij} \text{ else } -\infty .$$
#
# Two things follow. A hidden key has a weight of exactly 0, not just a small one, so its derivative is exactly 0,
# too. And if a query may look at no key, the denominator is 0.
#
# Below is a **naive version**, then a check that it **equals** both our `attention` and torch's kernel:


# %%
def naive_masked_attention(q, k, v, mask):
    out = torch.zeros(len(q), v.size(1), dtype=v.dtype)
    for i in range(len(q)):
        seen = [j for j in range(len(k)) if mask[i, j]]
        weights = [math.exp(float(q[i] @ k[j]) / math.sqrt(q.size(1))) for j in seen]
        out[i] = sum(w * v[j] for w, j in zip(weights, seen, strict=True)) / sum(weights)
    return out


random = torch.Generator().manual_seed(1)
q, k, v = (torch.randn(5, 8, dtype=torch.float64, generator=random) for _ in range(3))
ours = naive_masked_attention(q, k, v, causal_mask(5))
assert torch.allclose(ours, attention(q, k, v, causal_mask(5))[0], atol=1e-12)
assert torch.allclose(ours, F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0], atol=1e-12)

# %%
source_of(padding_mask, causal_mask)

# %% [markdown]
# **Picture.** A batch of two sources: "ein Hund", padded to the length of "ein großer Hund rennt" plus its end
# symbol. The target of the first source is "a dog". These are the masks of that first row:

# %%
src_words, tgt_words = ["ein", "Hund", "⟨end⟩", "⟨pad⟩", "⟨pad⟩"], ["⟨begin⟩", "a", "dog"]
real = padding_mask(torch.tensor([[3, 4, 2, PAD, PAD]]), PAD)[0, 0]
pictures.mask_maps(
    [
        ("encoder self-attention", real.expand(5, -1), src_words, src_words),
        ("decoder self-attention", causal_mask(3), tgt_words, tgt_words),
        ("cross-attention", real.expand(3, -1), tgt_words, src_words),
    ]
)

# %% [markdown]
# ## 2. The law of the future: a derivative of exactly zero
#
# A causal mask is correct if output $i$ does not depend on input $j$ for any $j > i$: $\partial\,\mathrm{out}_i /
# \partial\,\mathrm{in}_j = 0$. This zero is exact: the weight is exactly 0, and so is every product with it. So the
# best test of a causal mask is to backpropagate a gradient and look at it.

# %%
dependence = experiments.gradients()
pictures.gradient_maps(dependence)

# %%
ledger.settle("masks-the-future-has-no-gradient", dependence)

# %% [markdown]
# Left: two layers of the package's decoder; every printed 0 is exact. Middle: the same weights without the causal
# mask. Right: the derivative of the decoder's outputs with respect to the encoder's outputs. The last two source
# positions are padding, and nothing depends on them.

# %%
assert dependence.padding_gradient == 0
assert float(dependence.decoder_without_mask.triu(1).max()) > 0.1

# %% [markdown]
# ## 3. Without the causal mask: excellent numbers, useless output
#
# We design the task so that we can *prove* a leak. The model reverses a source of random symbols, and a coin toss
# decides which of two synonyms to write for each symbol (in the examples printed below: the symbol itself, or the
# symbol plus 8). No model can know the coins. So there is a floor: each coin costs a loss of $\ln 2$, and only about
# half of those tokens can be predicted. **A model that does better must have looked at the target.**
#
# We remove one part, with a subclass that ignores `is_causal`:

# %%
source_of(surgery.AttentionWithoutCausalMask)

# %% [markdown]
# **Predict.** Both models train on the same batches. With teacher forcing (every earlier target token is given), what
# share of the next tokens does the model without the mask predict correctly? And when it writes by itself, what share
# of its outputs is entirely right?

# %%
my_guess_told, my_guess_writing = ..., ...

# %%
found = experiments.no_causal_mask()
pictures.leak_curves(found)

# %%
ledger.settle("masks-without-the-causal-mask-the-loss-collapses", found)

# %%
ledger.settle("masks-without-the-causal-mask-accuracy-looks-perfect", found)

# %%
ledger.settle("masks-without-the-causal-mask-it-writes-nonsense", found)

# %%
print(
    f"next tokens: {found.leaky_told:.1%}{guessed(my_guess_told)}; possible without a leak: {found.task.best_told:.1%}"
)
print(f"outputs: {found.leaky_writing:.1%}{guessed(my_guess_writing)}; with the mask: {found.honest_writing:.1%}")
for source, honest, leaky in found.examples:
    print(f"source {source}: with the mask {honest}, without {leaky}")

# %% [markdown]
# In both plots the model with the causal mask is the good one, and it has the *worse* loss and the *worse* accuracy
# under teacher forcing.
#
# **What happened.** The decoder's input at position $t + 1$ is the token that position $t$ must predict. Without the
# mask, attention only has to learn to copy from one position to the right. That is easier than the task itself, so
# the model learns it first. After that, too little loss is left to learn anything else from. When the model writes by
# itself, there is nothing to the right. In training that happened in only one place: at the end of the target. So the
# model writes the end symbol at once, and its output is empty.
#
# **Is the cache to blame,** because it never shows the future in decoding? No. We can also decode in full passes,
# where every token looks at everything written so far, as in training. The result is no better:

# %%
print(f"written in full passes, without a cache: {found.leaky_writing_in_full_passes:.1%} right")
assert found.leaky_writing_in_full_passes < 0.1

# %% [markdown]
# This has happened in real projects. In one, a model with a single hidden unit predicted 98% of the validation tokens
# correctly, and its translations were nonsense (jadore801120/attention-is-all-you-need-pytorch#19). In another
# report, which nobody has confirmed, the loss became impossibly low, but only with the hand-written mask
# (karpathy/nanoGPT#331). There are three ways to notice such a leak:
#
# 1. The gradient test of section 2: it takes a second and needs no training.
# 2. A loss lower than possible. Here we know the floor. On real text, be suspicious of a perplexity
#    ($e^{\text{loss}}$) near 1.
# 3. Score what the model **writes**, not what it predicts under teacher forcing (see [real
#    translation](real_translation.ipynb)).
#
# ## 4. Without the padding mask: outputs depend on the rest of the batch
#
# The sentences of a batch are padded to the length of the longest one. With the padding mask, this must not affect
# any output. That is another law.
#
# **Predict.** A trained model reverses all sources correctly. Now we remove its padding mask without touching any
# weight. We run each source twice: alone, and in a batch with a longer source. What share of the outputs changes?

# %%
my_guess_changed = ...

# %%
mates = experiments.batch_mates()
pictures.batch_mates_curves(mates)

# %%
ledger.settle("masks-with-the-padding-mask-mates-do-not-matter", mates)

# %%
ledger.settle("masks-without-the-padding-mask-mates-matter", mates)

# %%
ledger.settle("masks-training-without-it-is-no-cure", mates)

# %%
print(f"{mates.padding[-1]} tokens of padding: {mates.changed_when_taken_out:.0%} changed{guessed(my_guess_changed)}")
print(f"log-probabilities then change by up to {mates.unmasked_leak:.1f} nats")
for name, share in mates.right_in_batches.items():
    print(f"{name}: {share:.0%} of outputs right in batches as in training, {mates.right[name][0]:.0%} alone")

# %% [markdown]
# The third model is the one to remember. It **never had** a padding mask. In batches like those of training it does
# well, so every number of its training run looks healthy. Alone, or in other batches, it fails. It learned to rely on
# the padding: nearly all training batches were equally wide, so the model could find the first symbol by counting
# positions from the right edge. (This explanation is our reading of the green curve on the right. It peaks where the
# amount of padding is as in training.) In production you would notice outputs that change with the batch size, or a
# service that works worse for single requests.
#
# Here is the law once more, checked by hand: one source, alone and with padding, in the package's encoder.

# %%
model = experiments.small_transformer(reversal().vocabulary).double().eval()
src = torch.tensor([[5, 9, 7, 2]])
with torch.no_grad():
    alone, beside = model.encode(src)[0], model.encode(experiments.padded(src, 5))[0]
assert torch.allclose(alone, beside[:, :4], atol=1e-12)

# %% [markdown]
# ## 5. Four conventions, and a row that may look at nothing
#
# | where | type | hidden is |
# |---|---|---|
# | here, and `F.scaled_dot_product_attention(attn_mask=...)` | bool | `False` |
# | `torch.nn.MultiheadAttention(key_padding_mask=..., attn_mask=...)` | bool | **`True`** |
# | either of them | float, added to the scores | $-\infty$ |
# | older code | float, added | $-10^9$, which is not the same |
#
# Two functions of one library use opposite conventions, and learners have asked about it for years
# (pytorch/tutorials#2250). Where a mask passes from one convention to the other, invert it there, once, and name it
# by what `True` means: `may_look`, `is_padding`.
#
# **Predict.** Suppose a query may look at no key at all. What comes out: zeros, the mean of all values, or NaN?

# %%
my_guess_nowhere = ...

# %%
scores, nothing = torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 3, dtype=torch.bool)
values = torch.tensor([[1.0], [2.0], [6.0]])
print("NaN, zeros or the mean?" + guessed(my_guess_nowhere))
print("-inf:   ", scores.masked_fill(~nothing, -math.inf).softmax(-1) @ values)
print("-1e9:   ", (scores - 1e9).softmax(-1) @ values, "(the plain mean)")
print("kernel: ", F.scaled_dot_product_attention(scores, scores.expand(3, -1), values, attn_mask=nothing))

# %% [markdown]
# The question has no meaningful answer, and the three versions give three different ones. Dividing 0 by 0 gives NaN.
# Adding $-10^9$ silently gives the mean of exactly the values that were hidden (in float32, adding a number that
# large erases the scores). Torch's kernel returns zeros. NaN is the most honest of the three, but it spreads: since
# $0 \cdot \mathrm{NaN} = \mathrm{NaN}$, one such row spoils the gradient of *all* weights, even if its loss is
# masked:

# %%
weight = torch.ones(2, requires_grad=True)
outputs = torch.stack((weight * 1.0, weight * torch.tensor(math.nan)))  # the second row is that of an empty sentence
(outputs * torch.tensor([[1.0], [0.0]])).sum().backward()
print("gradient, with the second row's loss multiplied by 0:", weight.grad)

# %% [markdown]
# So make sure that no query is left without a key. Here a source always has its end symbol, so even an empty source
# has a key to look at. Padding stands on the right, so with the causal mask every query sees at least itself. And we
# mask only the keys of padding, not its queries: nothing ever reads what those compute.
#
# ## 6. Padding in the loss
#
# There is one more place where padding must not count, and it is outside attention. Padding labels must be left out
# **twice**: from the sum, and from the number the sum is divided by. In this example the two rows have 9 tokens and 1
# token, and the model predicts padding as confidently as a trained model would:

# %%
losses = torch.full((2, 9), 2.0)  # nats, for real tokens
is_real = torch.tensor([[True] * 9, [True] + [False] * 8])
losses[~is_real] = 0.01  # padding is easy to predict
print(f"over real tokens {losses[is_real].mean():.2f}, over everything {losses.mean():.2f}")

# %% [markdown]
# Nothing was learned between these two numbers. Padding inflates accuracy in the same way. In this package the loss
# is a sum and a count. The division happens once per step, over all rows of all processes (`training/loss.py`).
#
# ## Exercises
#
# **1.** One batch: a source of four tokens, padded to six, and a target of six. There are six masks, blue where a
# query may look. **Which one is wrong?**

# %%
print("source ids:", SOURCE.tolist(), "  target ids:", TARGET.tolist(), "  padding:", PAD)
pictures.mask_maps(
    [
        (f"{letter}: {name}", mask, [""] * mask.size(0), [str(j) for j in range(mask.size(1))])
        for letter, (name, mask) in six_masks().items()
    ]
)

# %%
my_letter = ...
check("masks-one-of-six", my_letter)

# %% [markdown]
# Once you have found it: this bug has appeared in published code (hyunwoongko/transformer#11). It is hard to notice
# on toy tasks. In reversal, source and target have the same lengths, so both masks are *equal* and every test passes:

# %%
batch = reversal().draw(8, torch.Generator().manual_seed(1))
assert torch.equal(padding_mask(batch.src, PAD), padding_mask(batch.tgt_in, PAD))  # on a task like this one
other = batch_of([([3, 4, 5], [6]), ([3], [6, 7, 8])])  # sides of different lengths, as in translation
assert not torch.equal(padding_mask(other.src, PAD), padding_mask(other.tgt_in, PAD))

# %% [markdown]
# **2.** Build the mask of a decoder that must hide both future and padding: `(batch, length)` ids in, `(batch,
# queries, keys)` out, `True` where a query may look.


# %%
def my_mask(ids, pad_id): ...


check("masks-build", my_mask)

# %% [markdown]
# **3.** Our mask of real tokens in, the `key_padding_mask` of `torch.nn.MultiheadAttention` out.


# %%
def my_key_padding_mask(may_look): ...


check("masks-dialect", my_key_padding_mask)

# %% [markdown]
# **4.** The mean loss of a batch: `losses` and `labels` have shape (rows, length).


# %%
def my_mean_loss(losses, labels, pad_id): ...


check("masks-loss", my_mean_loss)

# %%
hint("masks-one-of-six")

# %%
solution("masks-build")

# %% [markdown]
# ## Paper against code
#
# | sections 3.1 and 3.2.3 | here |
# |---|---|
# | illegal connections are set to $-\infty$ before the softmax | the same; the kernel's `is_causal` stands in for the matrix |
# | the causal mask, "combined with" an offset of the outputs by one | `tgt_in` is shifted against `tgt_out`, once, in `data.collate` |
# | says nothing about padding | `padding_mask`, made once in `Transformer.encode`, used by the encoder and by cross-attention |
# | says nothing about target padding | no mask: padding stands on the right, in the future of every real token; the loss leaves it out |
#
# Beyond these masks: in *packed* batches, several sentences follow one another in one row without padding, and
# attention stays within each sentence (`model/packing.py`).
#
# ## What people get wrong
#
# - **"Writing needs a causal mask, too."** When a model writes token by token with a cache, there is no future to
#   hide. Training needs the mask, because it computes all positions at once.
# - **"Training accuracy is high, so the model works."** In section 3 it was highest where nothing worked.
# - **Masking after the softmax.** The rows no longer sum to 1, and hidden keys still count in the denominator. Mask
#   scores, not weights.
# - **Masking padding queries.** It is not needed, and a row with nothing to look at becomes NaN
#   (pytorch/pytorch#24816).
# - **Broadcasting that fits by chance.** A mask of shape (batch, length) meets scores of shape (batch, heads,
#   queries, keys). If batch = heads or queries = keys, a wrong axis fits, too. A test in which all sizes differ finds
#   this. The keras.io example had its mask axes fixed three times (keras-team/keras-io#1046, #1254, #1997).
#
# Next: [break it and find it](break_it.ipynb) contains some of these bugs, without their names.

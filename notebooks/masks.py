# %% [markdown]
# # Masks: who may look where, and what happens when somebody looks who must not
#
# Chapter 7 of [the main notebook](transformer.ipynb) introduces the three masks and their laws. Here they are taken
# out, one after the other, and we watch. One of the two accidents gives *better* numbers than the right model.
#
# **In this package a mask is `True` where attention may look.** Other libraries say the opposite; section 5 is about
# that.

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
# | encoder self-attention | source | source | padding of the **source** | padding is no word |
# | decoder self-attention | target so far | target so far | causal | the future is what must be predicted |
# | cross-attention | target | source | padding of the **source**, again | the keys are the source's |
#
# The rule behind it: **a mask belongs to the keys.** It is made of the ids of those who are looked *at*. (The paper
# speaks of the causal mask alone, section 3.2.3; padding is a matter of batches.)
#
# **Maths.** With scores $s_{ij} = q_i \cdot k_j / \sqrt{d_k}$ of query $i$ and key $j$, and $M_{ij}$ true where $i$
# may look at $j$:
#
# $$w_{ij} = \frac{M_{ij}\, e^{s_{ij}}}{\sum_{j'} M_{ij'}\, e^{s_{ij'}}}
#   \qquad\text{the same as}\qquad \mathrm{softmax}_j\big(s_{ij} + b_{ij}\big),\quad
#   b_{ij} = 0 \text{ if } M_{ij} \text{ else } -\infty .$$
#
# Two things follow at once. A hidden key has weight exactly 0, not a small one, and with it a derivative of exactly 0.
# And if a query may look nowhere, the denominator is 0.
#
# **Naive version**, and **equality** with `attention` and with torch's kernel:


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
# **Picture.** A batch of two: "ein Hund" beside "ein großer Hund rennt", with its end symbol, and "a dog" as the
# target. The masks of the first row:

# %%
src_words, tgt_words = ["ein", "Hund", "⟨end⟩", "⟨pad⟩", "⟨pad⟩"], ["⟨begin⟩", "a", "dog"]
real = padding_mask(torch.tensor([[3, 4, 2, PAD, PAD]]), PAD)[0, 0]
pictures.mask_maps(
    [
        ("encoder", real.expand(5, -1), src_words, src_words),
        ("decoder, itself", causal_mask(3), tgt_words, tgt_words),
        ("cross-attention", real.expand(3, -1), tgt_words, src_words),
    ]
)

# %% [markdown]
# ## 2. The law of the future: a derivative that is nothing
#
# A mask is right if output $i$ does not depend on input $j$ for $j > i$: $\partial\,\mathrm{out}_i /
# \partial\,\mathrm{in}_j = 0$. Not about zero: the weight is 0 exactly, so is every product with it. That makes the
# best test of a causal mask there is: send a gradient back and look.

# %%
dependence = experiments.gradients()
pictures.gradient_maps(dependence)

# %%
ledger.settle("masks-the-future-has-no-gradient", dependence)

# %% [markdown]
# Left: two layers of the shipped decoder; every 0 is an exact one. Middle: the same weights without the causal mask.
# Right: the decoder's outputs by the encoder's; the last two source positions are padding, and nothing depends on them.

# %%
assert dependence.padding_gradient == 0
assert float(dependence.decoder_without_mask.triu(1).max()) > 0.1

# %% [markdown]
# ## 3. Without the causal mask: wonderful numbers, and nothing written
#
# The task is made so that a leak can be *proved*. A source of random symbols is to be reversed, and every symbol of the
# answer has two synonyms, chosen by the toss of a coin. Nobody can know the coin. So there is a floor: a loss of
# $\ln 2$ for each coin, and about half of the next tokens named. **Whoever is better than that has looked.**
#
# One part is taken out, by a subclass that does not listen to `is_causal`:

# %%
source_of(surgery.AttentionWithoutCausalMask)

# %% [markdown]
# **Predict.** Both models train on the same batches. What share of next tokens does the model without the mask name,
# when it is told all before them (teacher forcing)? And what share of whole answers does it get right when it writes
# by itself?

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
print(f"named: {found.leaky_told:.1%}{guessed(my_guess_told)}; possible without looking: {found.task.best_told:.1%}")
print(f"right: {found.leaky_writing:.1%}{guessed(my_guess_writing)}; with the mask: {found.honest_writing:.1%}")
for source, honest, leaky in found.examples:
    print(f"{source} -> with mask: {honest}; without: {leaky}")

# %% [markdown]
# The model on the left of every pair of bars is the good one, and has the *worse* loss and the *worse* accuracy.
#
# **What happened.** The decoder's input at position $t + 1$ is what position $t$ must predict. Without the mask,
# attention only has to learn "copy from one to the right". That is easier than to translate, so it is learned first,
# and then there is no loss left to learn anything else from. When the model writes by itself, there is nothing to the
# right. In training that was so in one case only: at the end. So it says "end", at once, and the answer is empty.
#
# **Is it the cache's fault,** which in decoding never shows the future? No: in full passes, every token looking at all
# that is written so far, as in training, the result is no better:

# %%
print(f"written in full passes, without a cache: {found.leaky_writing_in_full_passes:.1%} right")
assert found.leaky_writing_in_full_passes < 0.1

# %% [markdown]
# Real projects had this. In one, 98 % of validation tokens were named by a model with a single hidden unit, whose
# translations were nonsense (jadore801120/attention-is-all-you-need-pytorch#19); in another report
# (unconfirmed) the loss fell where it cannot, with the hand-written mask only (karpathy/nanoGPT#331). Three ways to notice:
#
# 1. The gradient test of section 2: a second, no training.
# 2. A loss below what is possible. Here we know the floor; of real text, distrust a perplexity near 1.
# 3. Score what the model **writes**, not what it names when told (see [real translation](real_translation.ipynb)).
#
# ## 4. Without the padding mask: your answer depends on your neighbours
#
# Sentences of a batch are padded to the length of the longest. With the mask, that is nobody's business: another law.
#
# **Predict.** A trained model reverses sources perfectly. Now its padding mask is taken out, no weight is touched,
# and each source is answered alone and beside a mate that is longer. What share of answers changes?

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
print(f"changed beside {mates.padding[-1]} tokens: {mates.changed_when_taken_out:.0%}{guessed(my_guess_changed)}")
print(f"where scores move by up to {mates.unmasked_leak:.1f} nats")
for name, share in mates.right_in_batches.items():
    print(f"{name}: {share:.0%} right in batches as in training, {mates.right[name][0]:.0%} alone")

# %% [markdown]
# The third model is the one to remember. It **never had** a padding mask, and in batches like those of training it
# does well: every number of a training run looks healthy. Alone, or in other company, it fails. It has learned from
# the padding: nearly all batches of training were equally wide, so "so many places from the right edge" was as good a
# way to find the first symbol as any. (That explanation is our reading of the green curve on the right, which has its
# best place where the padding is as in training.) In use that shows as answers that change with the batch size, or as
# a service that is worse for a single request.
#
# The law, once more by hand: one source, alone and beside padding, in the shipped encoder.

# %%
model = experiments.small_transformer(reversal().vocabulary).double().eval()
src = torch.tensor([[5, 9, 7, 2]])
with torch.no_grad():
    alone, beside = model.encode(src)[0], model.encode(experiments.padded(src, 5))[0]
assert torch.allclose(alone, beside[:, :4], atol=1e-12)

# %% [markdown]
# ## 5. Four dialects, and a row that may look nowhere
#
# | where | type | hidden is |
# |---|---|---|
# | here, and `F.scaled_dot_product_attention(attn_mask=...)` | bool | `False` |
# | `torch.nn.MultiheadAttention(key_padding_mask=..., attn_mask=...)` | bool | **`True`** |
# | either of them | float, added to the scores | $-\infty$ |
# | older code | float, added | $-10^9$, which is not the same |
#
# Two functions of one library, and the opposite meaning: learners have asked about it for years
# (pytorch/tutorials#2250). Where a mask crosses such a border, invert it there, once, and name it by what `True`
# means: `may_look`, `is_padding`.
#
# **Predict.** A query may look at nothing at all. What comes out: zeros, the mean of all values, or NaN?

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
# Three answers to a question without meaning: 0/0 is NaN; $-10^9$ quietly gives the mean of exactly what was hidden
# (in float32, nothing of the scores is left beside it); and torch's kernel chose zeros. NaN is the rudest and the
# most honest. But it spreads: $0 \cdot \mathrm{NaN} = \mathrm{NaN}$, so one such row spoils the gradient of *all*
# weights, even when its loss is masked:

# %%
weight = torch.ones(2, requires_grad=True)
outputs = torch.stack((weight * 1.0, weight * torch.tensor(math.nan)))  # the second row is that of an empty sentence
(outputs * torch.tensor([[1.0], [0.0]])).sum().backward()
print("gradient, with the second row's loss times 0:", weight.grad)

# %% [markdown]
# So avoid the question. Here a source always has its end symbol, so even an empty one has a key to look at; padding
# stands on the right, so a causal query sees at least itself; and queries of padding are not hidden, only its keys
# are: what they compute is read by nobody.
#
# ## 6. Padding in the loss
#
# There is one more place where padding must not count, and it is no attention. Labels of padding are left out
# **twice**: of the sum, and of the number it is divided by. Here two rows of 9 and of 1 tokens; the model is as sure
# of padding as a trained one gets:

# %%
losses = torch.full((2, 9), 2.0)  # nats; of real tokens
is_real = torch.tensor([[True] * 9, [True] + [False] * 8])
losses[~is_real] = 0.01  # padding is easy to predict
print(f"over real tokens {losses[is_real].mean():.2f}, over everything {losses.mean():.2f}")

# %% [markdown]
# Nothing was learned between the two numbers. Accuracy is flattered in the same way. In this package the loss is a
# sum and a count, and the division is done once a step, over all rows of all processes (`transduce/loss.py`).
#
# ## Exercises
#
# **1.** One batch: a source of four tokens, padded to six, and a target of six. Six masks, blue where one may look.
# **Which is wrong?**

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
# When you have found it: it is a bug that has been shipped (hyunwoongko/transformer#11). It is hard to notice on toy
# tasks. Reversal gives source and target the same lengths, so both masks are *equal*, and every test passes:

# %%
batch = reversal().draw(8, torch.Generator().manual_seed(1))
assert torch.equal(padding_mask(batch.src, PAD), padding_mask(batch.tgt_in, PAD))  # on a task like this one
other = batch_of([([3, 4, 5], [6]), ([3], [6, 7, 8])])  # sides of different lengths, as in translation
assert not torch.equal(padding_mask(other.src, PAD), padding_mask(other.tgt_in, PAD))

# %% [markdown]
# **2.** Build the mask of a decoder that must hide both future and padding: `(batch, length)` ids in, `(batch,
# queries, keys)` out, `True` where one may look.


# %%
def my_mask(ids, pad_id): ...


check("masks-build", my_mask)

# %% [markdown]
# **3.** Our mask of real tokens in, the `key_padding_mask` of `torch.nn.MultiheadAttention` out.


# %%
def my_key_padding_mask(may_look): ...


check("masks-dialect", my_key_padding_mask)

# %% [markdown]
# **4.** The mean loss of a batch: `losses` and `labels` of shape (rows, length).


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
# | the causal mask, "combined with" an offset of the outputs by one | the shift of `tgt_in` against `tgt_out`, made once in `data.collate` |
# | silent on padding | `padding_mask`, made once in `Transformer.encode`, used by the encoder and by cross-attention |
# | silent on padding of the target | no mask: it stands on the right, in everybody's future; the loss leaves it out |
#
# Beyond masks: in *packed* batches sentences lie end to end in one row, without padding, and attention keeps to
# segments (`model/packing.py`).
#
# ## What people get wrong
#
# - **"A causal mask is needed when writing, too."** While one writes token by token with a cache, there is no future
#   to hide. It is training that needs it, where all positions are computed at once.
# - **"Training accuracy is high, so the model works."** Section 3: it was highest where nothing worked.
# - **Masking after the softmax.** Rows then do not sum to 1, and hidden keys still shape the denominator: set scores,
#   not weights.
# - **Masking queries of padding.** Not needed, and a row with nothing to look at is a NaN (pytorch/pytorch#24816).
# - **Broadcasting by luck.** A mask of (batch, length) meets scores of (batch, heads, queries, keys): with batch =
#   heads or queries = keys, a wrong axis fits. Shapes that are all different in a test find it; the keras.io example
#   had its mask axes repaired three times (keras-team/keras-io#1046, #1254, #1997).
#
# Next: [break it and find it](break_it.ipynb) has some of these bugs, without their names.

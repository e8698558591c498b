# %% [markdown]
# # Positions: how a network that sees sets learns about order
#
# Chapter 3 of [the main notebook](transformer.ipynb) introduces the sinusoids. This notebook goes deeper.
#
# **Question.** Attention is a weighted mean, and a mean ignores order. What exactly goes wrong without positions?
# Where must we add them? And do they work beyond the lengths seen in training, as the paper hoped?
#
# Everything below runs the package's own modules on small tasks. Every number is measured in this run.

# %%
import math

import torch

from transduce.learn import Ledger, check, guessed, hint, solution, source_of
from transduce.learn.positions import experiments, pictures
from transduce.learn.tasks import reversal
from transduce.learn.training import small_transformer
from transduce.model.positional import RotaryPositions, SinusoidalPositions, sinusoidal_table

ledger = Ledger.load()

# %% [markdown]
# ## 1. A law: an encoder without positions cannot see order
#
# **Predict.** Remove the positions from the *encoder* only; the decoder keeps its own. Does the network still give
# different outputs for "dog bites man" and "man bites dog"? Replace the dots by `True` or `False` before you go on.

# %%
my_guess_they_differ = ...

# %% [markdown]
# **Math.** Let $X$ be the source, one row per token, and let $P$ be a matrix that reorders the rows (a permutation
# matrix: one 1 in each row and column).
#
# | symbol | meaning | shape |
# |---|---|---|
# | $X$ | vectors of the source tokens | $S \times d_{model}$ |
# | $P$ | a reordering of the rows, $P^\top P = I$ | $S \times S$ |
# | $W^Q, W^K, W^V$ | the projections to queries, keys and values | $d_{model} \times d_k$ |
#
# Softmax works on each row separately. So if we reorder the rows of a matrix, or the entries within all rows, the
# result is reordered in the same way: $\mathrm{softmax}(P A P^\top) = P\,\mathrm{softmax}(A)\,P^\top$. Therefore
#
# $$\mathrm{softmax}\!\Big(\tfrac{P X W^Q (P X W^K)^\top}{\sqrt{d_k}}\Big)\, P X W^V
#  = P\,\mathrm{softmax}\!\Big(\tfrac{X W^Q (X W^K)^\top}{\sqrt{d_k}}\Big) \underbrace{P^\top P}_{I} X W^V .$$
#
# If the input rows are reordered, the output rows are the same, reordered in the same way: self-attention is
# *permutation-equivariant*. The feed-forward network, the norm and the residual connection act on each row
# separately, so the whole encoder is equivariant, too. Cross-attention then sums over the encoder's rows, and a sum
# does not depend on the order of its terms. So the decoder sees the source as a **set** (more precisely a bag: it
# does see how often each word occurs).
#
# **Naive version.** Attention as two loops, on three words and on the same three words in reverse order:


# %%
def naive_attention(x):
    rows = []
    for query in x:
        weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in x]
        rows.append(sum(w * value for w, value in zip(weights, x, strict=True)) / sum(weights))
    return torch.stack(rows)


words = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
assert torch.allclose(naive_attention(words).flip(0), naive_attention(words.flip(0)), atol=1e-12)
kernel = torch.nn.functional.scaled_dot_product_attention(words[None], words[None], words[None])[0]
assert torch.allclose(naive_attention(words), kernel, atol=1e-12)

# %% [markdown]
# **Experiment.** Now the package's encoder, in float64, with random weights: the law holds for any weights, trained
# or not. One line removes the positions: `model.src_positions = None`.

# %%
blindness = experiments.order_blindness()
ledger.settle("positions-encoder-is-blind", blindness)

# %%
ledger.settle("positions-dog-bites-man", blindness)

# %%
print(f"they differ: {blindness.answer_gap > 1e-9}{guessed(my_guess_they_differ)}")
print(f"with positions in the encoder, the scores differ by {blindness.answer_gap_with:.2f}")

# %% [markdown]
# So the information about who bit whom is lost, whatever the weights and whatever the decoder does. That is the
# reason for section 3.5 of the paper.
#
# ## 2. Which half needs positions? Train and see
#
# **Predict.** Four small networks learn to reverse a source: with positions in both halves, in the decoder only, in
# the encoder only, and in neither. What share of the outputs will be entirely right for the network *without
# positions in the decoder*?

# %%
my_guess_decoder = ...  # a share between 0 and 1

# %%
found = experiments.ablation()
pictures.ablation_bars(found)

# %%
ledger.settle("positions-reversal-needs-the-encoders", found)

# %%
ledger.settle("positions-decoder-reads-its-mask", found)

# %%
print(f"without decoder positions, {found.without_decoder_positions:.0%} are right{guessed(my_guess_decoder)}")
print(f"guessing the order of known symbols gets {found.blind_best:.1%} right")

# %% [markdown]
# You can see two things.
#
# - **Without positions in the encoder**, the network does as well as anyone who is given the symbols in a bag. It
#   writes the right symbols in a guessed order. The dashed line is the chance of guessing that order, one over the
#   number of possible orders.
# - **Without positions in the decoder**, little is lost. One clue is what the decoder has written so far. The causal
#   mask is another: position $t$ looks at $t + 1$ tokens, so if attention is spread evenly, the begin symbol gets a
#   smaller weight the later the position. Haviv et al. (2022, "Transformer Language Models without Positional
#   Encodings Still Learn Positional Information") found this in language models. "Transformers cannot know order
#   without positions" is true of the encoder, but not of a causal decoder.
#
# There is another exact law here. With **one** layer, the last token of a decoder without positions sees the earlier
# tokens as a bag. With **two** layers, each earlier token has already looked at the tokens before *it*, so the order
# makes a difference:

# %%
print(f"swapping earlier tokens changes the last output by {blindness.one_layer_gap:.1g} with one layer")
print(f"and by {blindness.two_layers_gap:.2f} with two")
assert blindness.one_layer_gap < 1e-12 < 1e-3 < blindness.two_layers_gap

# %% [markdown]
# ## 3. The sinusoids
#
# **Math** (section 3.5). Position $pos$ gets the row
#
# $$PE_{(pos,\,2i)} = \sin(pos \cdot \omega_i), \qquad PE_{(pos,\,2i+1)} = \cos(pos \cdot \omega_i), \qquad
#   \omega_i = 10000^{-2i/d_{model}} .$$
#
# | symbol | meaning |
# |---|---|
# | $pos$ | the position, counted from 0 |
# | $i$ | the index of a pair of channels, $0 \dots d_{model}/2 - 1$ |
# | $\omega_i$ | the angle by which the pair rotates from one position to the next, in radians |
# | $2\pi/\omega_i$ | its wavelength: from $2\pi$ positions to nearly $10000 \cdot 2\pi$ |
#
# Each pair is like a hand of a clock. The first goes around once in about six positions; the last hardly moves within
# a sentence. Together they give the position, as the hands for seconds, minutes and hours give the time.
#
# Below is a **naive version**, one number at a time, then a check that it **equals** the package's function:


# %%
def naive_table(num_positions, d_model):
    table = torch.zeros(num_positions, d_model)
    for pos in range(num_positions):
        for i in range(d_model // 2):
            angle = pos / 10_000 ** (2 * i / d_model)
            table[pos, 2 * i], table[pos, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


assert torch.allclose(naive_table(50, 64), sinusoidal_table(50, 64), atol=1e-6)
source_of(sinusoidal_table, SinusoidalPositions)

# %% [markdown]
# **Picture.** Channels 4 and 5 are a sine and a cosine of the same wavelength. Higher channels change more slowly.

# %%
table = sinusoidal_table(64, 64)
pictures.table_and_lines(table, channels=(4, 5, 10, 20))

# %% [markdown]
# ### A step of $k$ positions is the same rotation everywhere
#
# The paper chose sinusoids because "for any fixed offset $k$, $PE_{pos+k}$ can be represented as a linear function of
# $PE_{pos}$". The angle-sum formulas for sine and cosine give, for each pair:
#
# $$\begin{pmatrix} \sin((pos+k)\,\omega) \\ \cos((pos+k)\,\omega) \end{pmatrix} =
#   \begin{pmatrix} \cos k\omega & \sin k\omega \\ -\sin k\omega & \cos k\omega \end{pmatrix}
#   \begin{pmatrix} \sin(pos\,\omega) \\ \cos(pos\,\omega) \end{pmatrix} .$$
#
# The matrix depends on $k$, but not on $pos$. One large matrix with these small ones on its diagonal shifts the whole
# table at once:

# %%
for k in (1, 7, -3):
    here, there = table[10:50].double(), table[10 + k : 50 + k].double()
    assert torch.allclose(here @ experiments.shift_matrix(k, 64).T, there, atol=1e-5)
pictures.rotations(table, pairs=(1, 4, 8), offset=3)

# %% [markdown]
# Each plot shows a step of three positions, from 0 and from 5. Within a pair of channels both steps have the same
# angle; the angle differs from pair to pair.
#
# A rotation preserves lengths and dot products. So the dot product of two rows depends only on their distance: $PE_a
# \cdot PE_b = \sum_i \cos((a-b)\,\omega_i)$. In the next picture, the right plot shows the dot products of three rows
# with all others, by distance: the three curves coincide.

# %%
rates = 10_000 ** (-torch.arange(0, 64, 2) / 64)
by_distance = torch.cos((torch.arange(64)[:, None] - torch.arange(64))[..., None] * rates).sum(-1)
assert torch.allclose(table @ table.T, by_distance, atol=1e-4)
pictures.similarity(table, rows=(10, 32, 50))

# %% [markdown]
# Nearby positions have similar rows, so attention that looks for one position also looks a little at its neighbors.
# You often see this in attention maps of small models. Do not read more into it: $W^Q$ and $W^K$ stand between the
# positions and the scores, and they may learn any rotation, such as "three to the left".
#
# ### Interleaved or concatenated: the same model
#
# The paper alternates sine and cosine channels. Its authors' own library wrote all sines first, then all cosines, and
# you will find both layouts in pictures. Neither is wrong: they differ only in the order of the channels. If you
# reorder the channels of all weights in the same way, every output is reordered in the same way:

# %%
order = [*range(0, 64, 2), *range(1, 64, 2)]
interleaved = small_transformer(reversal().vocabulary).double().eval()
concatenated = experiments.with_channels_in_order(interleaved, order)
batch = reversal().draw(5, torch.Generator().manual_seed(1))
with torch.no_grad():
    one, other = (model(batch.src, batch.tgt_in) for model in (interleaved, concatenated))
assert torch.allclose(one[..., order], other, atol=1e-10)
print(concatenated.src_positions.table[5, :4], "= the sines of", [round(5 * float(rate), 3) for rate in rates[:4]])

# %% [markdown]
# ## 4. Three alternatives: learned, rotary, none
#
# - **Learned** (`positions="learned"`, the paper's table 3, row E): one trained vector for each position up to
#   `max_len`. It has nothing useful for positions that never occurred in training, and nothing at all beyond
#   `max_len`.
# - **Rotary** (`positions="rotary"`; Su et al. 2021; a departure from the paper): nothing is added to the embedding.
#   Instead, each self-attention rotates the pairs of channels of its queries and keys by the angles $pos \cdot
#   \omega_i$ (with $d_k$ in place of $d_{model}$). The dot product of two rotated vectors depends on the difference
#   of their angles, and so on the distance.
# - **None** (`positions="none"`): the case of section 1, in both halves.

# %%
source_of(RotaryPositions)

# %% [markdown]
# **Equality.** The module multiplies complex numbers. Rotating a pair by hand gives the same result, and the dot
# product of a query and a key depends only on their distance:

# %%
random = torch.Generator().manual_seed(2)
q, k = (torch.randn(1, 1, 1, 16, dtype=torch.float64, generator=random) for _ in range(2))
rotary, places = RotaryPositions(16), torch.arange(24)
turned_q, turned_k = (rotary(x.expand(1, 1, 24, 16), places)[0, 0] for x in (q, k))
for pos in (0, 5, 23):
    by_hand = q[0, 0, 0] @ experiments.shift_matrix(-pos, 16).T  # the same rotation, backward
    assert torch.allclose(turned_q[pos], by_hand, atol=1e-10)
products = turned_q @ turned_k.T
assert torch.allclose(products[3, 8], products[13, 18], atol=1e-10)
pictures.scores_by_position((q[0, 0] @ k[0, 0].T).expand(24, 24), products)

# %% [markdown]
# **Learned positions have an end.** Past the longest sentence seen in training, there is no error: those vectors are
# simply still random, as they were at the start. Only past `max_len` does the module complain:

# %%
short = small_transformer(reversal().vocabulary, positions="learned", max_len=12)
try:
    short.encode(torch.full((1, 13), 3))
except ValueError as error:
    print(error)

# %% [markdown]
# ## 5. How far do they reach?
#
# The paper found learned vectors and sinusoids "nearly identical". It preferred sinusoids "because it may allow the
# model to extrapolate to sequence lengths longer than the ones encountered during training". It did not measure that.
# We do.
#
# **Predict.** Networks learn from sources up to a certain length (shaded below). At one and a half times that length,
# what share of the outputs is right with sinusoids? With rotary positions?

# %%
my_guess_sinusoidal, my_guess_rotary = ..., ...

# %%
reversing = experiments.extrapolation()
sorted_out = experiments.sorting_beyond()
pictures.length_curves(reversing, sorted_out)

# %%
ledger.settle("positions-learned-is-nearly-identical", reversing)

# %%
ledger.settle("positions-sinusoids-do-not-extrapolate", reversing)

# %%
ledger.settle("positions-rotary-does-not-extrapolate", reversing)

# %%
ledger.settle("positions-none-sorts-longer-sources", sorted_out)

# %%
print(f"outputs right at {reversing.beyond} symbols, after training on at most {reversing.longest_trained}:")
print(f"reversal, sinusoidal: {reversing.sinusoidal_beyond:.0%}{guessed(my_guess_sinusoidal)}")
print(f"reversal, rotary: {reversing.rotary_beyond:.0%}{guessed(my_guess_rotary)}")
for kind in sorted_out.scores:
    print(f"sorting, {kind}: {sorted_out.at(kind, sorted_out.beyond):.0%}")

# %% [markdown]
# **What goes wrong?** Here are correct reversals, and what the network with sinusoids writes, for sources one and a
# half times as long as any in training:

# %%
for right, answer in reversing.examples:
    print(f"correct: {right}\noutput:  {answer}\n")
for kind, share in reversing.begins_at_last_trained.items():
    print(f"{kind}: {share:.0%} of the outputs begin with symbol number {reversing.longest_trained} of the source")

# %% [markdown]
# Chance would be one over the number of symbols. With a separate vector for each position, the network mostly begins
# with the last position it knows from training, not with the last symbol. No training output ever began with a later
# position. From there the network goes backward and skips some symbols. It has learned *positions* where a reader
# would have learned "the end". Rotary positions give it no positions to hold on to, so it fails differently.
#
# **In short.** Within the lengths of training, the kind of positions hardly matters. Learned vectors are slightly
# worse at the longest lengths, because each vector learns only from sources that reach it. Beyond the lengths of
# training, on reversal, **nothing extrapolates**: not the sinusoids, though their table goes on forever; not rotary
# positions, though they only know distances; and not the learned vectors. Even if the formula goes on, the weights
# have never seen those rows or those distances, and nothing trained them to handle them.
#
# The right plot shows something else. Sorting does not need the order of the source at all, and there, *fewer*
# positions reach further: for the network without positions, the only new thing about a longer source is the number
# of tokens. Positions are information, and a network may come to depend on information it does not need.
#
# Three things do help, outside this notebook. You can train on the lengths you will need. You can draw the positions
# of each sentence at random from a longer range, in increasing order (Ruoss et al. 2023). You can make scores
# decrease with distance (ALiBi, Press et al. 2022). And at inference, `predict` truncates sources that are longer
# than the model was built for, and says so, instead of hoping for the best.
#
# These are small networks with few training steps and one random seed. The lengths at which they fail are specific to
# them. But sinusoids also fail in large language models (Press et al. 2022, section 2; rotary positions reach
# somewhat further there).
#
# ## Exercises
#
# **1.** Which of these tasks can be learned perfectly if the *encoder* has no positions but the decoder has them?
# Give the set of those among `"reverse"`, `"copy"`, `"sort"`, `"count the words"`, `"name the largest"`, `"name the
# third word"`.

# %%
my_tasks = ...
check("positions-without", my_tasks)

# %% [markdown]
# **2.** Build the table without loops. `hint("positions-table")` gives one hint after another.


# %%
def my_table(num_positions, d_model): ...


check("positions-table", my_table)

# %% [markdown]
# **3.** The 2 × 2 matrix that takes the pair (sine, cosine) with angular rate `rate` from any position to the
# position `offset` further on.


# %%
def my_rotation(offset, rate): ...


check("positions-rotation", my_rotation)

# %% [markdown]
# **4.** The order of channels that turns the interleaved table into the concatenated one: `table[:,
# my_order(d_model)]`.


# %%
def my_order(d_model): ...


check("positions-layout", my_order)

# %%
hint("positions-rotation")

# %% [markdown]
# After you have tried: `solution("positions-rotation")`.

# %%
solution("positions-layout")

# %% [markdown]
# ## Paper against code
#
# | section 3.5 | here |
# |---|---|
# | sinusoids, interleaved, added to the embeddings of both halves | the same: `positions="sinusoidal"`, the default |
# | embeddings times $\sqrt{d_{model}}$ before the sum (3.4) | the same |
# | learned vectors, "nearly identical" | `positions="learned"`; initialized from $N(0, 1/d_{model})$, about which the paper says nothing |
# | — | **departures:** `rotary` (only in self-attention, never in cross-attention, where the two sides share no common scale of positions) and `none` |
# | angles in unspecified precision | in float64: at a few thousand radians, a float32 angle puts an error in the fourth digit of its sine |
#
# ## What people get wrong
#
# - **"Adding embedding and position mixes up what and where."** In a space of a few hundred dimensions, projections
#   can separate the two, and $W^Q$ and $W^K$ are projections. Section 2 shows this at work.
# - **A forgotten position raises no error.** The sum is computed but never assigned, or a setting is missing.
#   Training goes on, the loss falls, and outputs have the right words in a poor order
#   (Lightning-AI/pytorch-lightning#19138, OpenNMT/OpenNMT-py#2262). The test is one line: the outputs for the two
#   orders of section 1 must *differ*.
# - **"Sinusoids extrapolate."** The table does. The network does not.
# - **"Learned positions are limited by the data, sinusoids are not."** Both are limited by the data. Learned ones
#   raise an error at `max_len`.
# - **Counting from 1, or counting padding.** Here sources are padded on the right, so a token's position does not
#   depend on its batch. With padding on the left, positions must be counted from the first real token.
#
# Next: [masks](masks.ipynb), the other thing attention has to be told.

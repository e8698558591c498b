# %% [markdown]
# # Positions: how a network that sees sets learns what order is
#
# Chapter 3 of [the main notebook](transformer.ipynb) introduces the sinusoids. This one goes deeper.
#
# **Question.** Attention is a weighted mean, and a mean does not know an order. What exactly goes wrong without
# positions? Where must they be put in? And do they reach further than the sentences of training, as the paper hoped?
#
# Everything below runs the shipped modules on small tasks; each number is measured in this run.

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
# ## 1. An encoder without positions is blind to order: a law
#
# **Predict.** Take the positions away from the *encoder* alone. The decoder keeps its own. Does the network answer
# "dog bites man" and "man bites dog" differently? Write `True` or `False` in place of the dots, before you go on.

# %%
my_guess_they_differ = ...

# %% [markdown]
# **Maths.** Write $X$ for the source, one row for each token, and $P$ for a matrix that puts rows in another order (a
# permutation: one 1 in each row and column).
#
# | symbol | meaning | shape |
# |---|---|---|
# | $X$ | vectors of the source tokens | $S \times d_{model}$ |
# | $P$ | another order of the rows, $P^\top P = I$ | $S \times S$ |
# | $W^Q, W^K, W^V$ | the projections to queries, keys and values | $d_{model} \times d_k$ |
#
# Softmax works on each row by itself, so it does not care how rows, or the entries within a row, are ordered, and
# follows both: $\mathrm{softmax}(P A P^\top) = P\,\mathrm{softmax}(A)\,P^\top$. Therefore
#
# $$\mathrm{softmax}\!\Big(\tfrac{P X W^Q (P X W^K)^\top}{\sqrt{d_k}}\Big)\, P X W^V
#  = P\,\mathrm{softmax}\!\Big(\tfrac{X W^Q (X W^K)^\top}{\sqrt{d_k}}\Big) \underbrace{P^\top P}_{I} X W^V .$$
#
# Other words in, the same rows out in the other order: self-attention is *permutation-equivariant*. The feed-forward
# network, the norm and the residual act on each row alone. So the whole encoder is equivariant.
# Cross-attention then sums over the encoder's rows, and a sum does not change with the order of its terms: to the
# decoder, the source is a **set** (more exactly a bag: it does see how often a word comes).
#
# **Naive version.** Attention by two loops, on three words and on the same three words backwards:


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
# **Experiment.** Now the shipped encoder, in float64, with random weights: the law is not about training, it holds for
# any weights. A position is taken out in one line: `model.src_positions = None`.

# %%
blindness = experiments.order_blindness()
ledger.settle("positions-encoder-is-blind", blindness)

# %%
ledger.settle("positions-dog-bites-man", blindness)

# %%
print(f"they differ: {blindness.answer_gap > 1e-9}{guessed(my_guess_they_differ)}")
print(f"with positions in the encoder the same scores differ by {blindness.answer_gap_with:.2f}")

# %% [markdown]
# So who bit whom is lost, whatever the weights, whatever the decoder does. That is the whole reason for section 3.5.
#
# ## 2. Which half needs positions? Train and see
#
# **Predict.** Four small networks learn to write a source backwards: with positions in both halves, in the decoder
# only, in the encoder only, in neither. What share of answers will the one *without positions in the decoder* get
# right?

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
print(f"without positions in the decoder {found.without_decoder_positions:.0%} are right{guessed(my_guess_decoder)}")
print(f"guessing the order of known symbols at random gets {found.blind_best:.1%} right")

# %% [markdown]
# Two things are to be seen.
#
# - **Without positions in the encoder** the network does as well as anyone who is handed the symbols in a bag: it
#   writes the right symbols in a guessed order. The dashed line is that chance, one over the number of orders.
# - **Without positions in the decoder** little is lost. The causal mask is itself a clue, and so is what has been written: position $t$ looks at $t +
#   1$ tokens, so the begin symbol gets a smaller share of a flat attention the further one is. Haviv et al. (2022,
#   "Transformer Language Models without Positional Encodings Still Learn Positional Information") found this in
#   language models. "Transformers cannot know order without positions" is true of the encoder, and not of a causal
#   decoder.
#
# One more exact law on the way. With **one** layer, the last token of a decoder without positions sees the earlier
# ones as a bag. With **two**, each earlier token has already looked at what came before *it*, and order is there:

# %%
print(f"earlier tokens change places; the last output moves by {blindness.one_layer_gap:.1g} with one layer,")
print(f"and by {blindness.two_layers_gap:.2f} with two")
assert blindness.one_layer_gap < 1e-12 < 1e-3 < blindness.two_layers_gap

# %% [markdown]
# ## 3. The sinusoids
#
# **Maths** (section 3.5). Position $pos$ gets the row
#
# $$PE_{(pos,\,2i)} = \sin(pos \cdot \omega_i), \qquad PE_{(pos,\,2i+1)} = \cos(pos \cdot \omega_i), \qquad
#   \omega_i = 10000^{-2i/d_{model}} .$$
#
# | symbol | meaning |
# |---|---|
# | $pos$ | the position, counted from 0 |
# | $i$ | the number of a pair of channels, $0 \dots d_{model}/2 - 1$ |
# | $\omega_i$ | how far the pair turns from one position to the next, in radians |
# | $2\pi/\omega_i$ | its wavelength: from $2\pi$ positions to nearly $10000 \cdot 2\pi$ |
#
# A pair is the hand of a clock. The first turns once in about six positions, the last hardly moves in any sentence:
# together they tell the time, as the hands for seconds, minutes and hours do.
#
# **Naive version**, one number at a time, and **equality** with the installed function:


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
# **Picture.** Channels 4 and 5 are a sine and a cosine of one wavelength; later channels are slower.

# %%
table = sinusoidal_table(64, 64)
pictures.table_and_lines(table, channels=(4, 5, 10, 20))

# %% [markdown]
# ### A step of $k$ positions is a rotation, the same everywhere
#
# The paper chose sinusoids because "for any fixed offset $k$, $PE_{pos+k}$ can be represented as a linear function of
# $PE_{pos}$". From the sines and cosines of sums, for each pair:
#
# $$\begin{pmatrix} \sin((pos+k)\,\omega) \\ \cos((pos+k)\,\omega) \end{pmatrix} =
#   \begin{pmatrix} \cos k\omega & \sin k\omega \\ -\sin k\omega & \cos k\omega \end{pmatrix}
#   \begin{pmatrix} \sin(pos\,\omega) \\ \cos(pos\,\omega) \end{pmatrix} .$$
#
# The matrix knows $k$ and not $pos$. Put on the diagonal for all pairs, it moves the whole table at once:

# %%
for k in (1, 7, -3):
    here, there = table[10:50].double(), table[10 + k : 50 + k].double()
    assert torch.allclose(here @ experiments.shift_matrix(k, 64).T, there, atol=1e-5)
pictures.rotations(table, pairs=(1, 4, 8), offset=3)

# %% [markdown]
# Three positions further, from 0 and from 5: the same angle within a pair, another one in each pair.
#
# A rotation keeps lengths and products. So the product of two rows depends on their distance alone:
# $PE_a \cdot PE_b = \sum_i \cos((a-b)\,\omega_i)$. On the right, three rows, each against all others, by distance: one
# curve.

# %%
rates = 10_000 ** (-torch.arange(0, 64, 2) / 64)
by_distance = torch.cos((torch.arange(64)[:, None] - torch.arange(64))[..., None] * rates).sum(-1)
assert torch.allclose(table @ table.T, by_distance, atol=1e-4)
pictures.similarity(table, rows=(10, 32, 50))

# %% [markdown]
# Near positions are alike, so attention that looks for one position also looks a little at its neighbours: often seen
# in heat maps of small models. Beware of reading more out of it: between query and key stand $W^Q$ and $W^K$, which
# may learn any rotation, "three to the left" among them.
#
# ### Interleaved or concatenated: one model
#
# The paper puts sine and cosine in turn. Its authors' own library wrote all sines first, then all cosines, and the
# pictures one meets show both. Neither is wrong: it is another order of the channels. Move the channels of
# all weights in the same way, and every output moves along:

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
# ## 4. Three others: learned, rotary, none
#
# - **Learned** (`positions="learned"`, table 3 row E of the paper): one trained vector for each position up to
#   `max_len`. It says nothing of positions that were never trained, and beyond `max_len` there is nothing to add.
# - **Rotary** (`positions="rotary"`; Su et al. 2021; a departure): nothing is added to the embedding. Instead, each
#   self-attention turns the pairs of channels of queries and keys by the angles $pos \cdot \omega_i$ (with $d_k$ for $d_{model}$). The product of
#   two turned vectors depends on the difference of the angles: on the distance.
# - **None** (`positions="none"`): what section 1 was about, in both halves.

# %%
source_of(RotaryPositions)

# %% [markdown]
# **Equality.** The module multiplies complex numbers; turning a pair by hand gives the same, and the product of a
# query and a key depends on their distance alone:

# %%
random = torch.Generator().manual_seed(2)
q, k = (torch.randn(1, 1, 1, 16, dtype=torch.float64, generator=random) for _ in range(2))
rotary, places = RotaryPositions(16), torch.arange(24)
turned_q, turned_k = (rotary(x.expand(1, 1, 24, 16), places)[0, 0] for x in (q, k))
for pos in (0, 5, 23):
    by_hand = q[0, 0, 0] @ experiments.shift_matrix(-pos, 16).T  # the same rotation as above, the other way round
    assert torch.allclose(turned_q[pos], by_hand, atol=1e-10)
products = turned_q @ turned_k.T
assert torch.allclose(products[3, 8], products[13, 18], atol=1e-10)
pictures.scores_by_position((q[0, 0] @ k[0, 0].T).expand(24, 24), products)

# %% [markdown]
# **Learned positions end.** Not at the longest sentence of training, where they quietly become what they were at the
# random start, but at `max_len`, where the module says so:

# %%
short = small_transformer(reversal().vocabulary, positions="learned", max_len=12)
try:
    short.encode(torch.full((1, 13), 3))
except ValueError as error:
    print(error)

# %% [markdown]
# ## 5. How far do they reach?
#
# The paper found learned vectors and sinusoids "nearly identical", and preferred sinusoids "because it may allow the
# model to extrapolate to sequence lengths longer than the ones encountered during training". It did not measure that.
# We do.
#
# **Predict.** Networks learn on sources of at most a certain length (shaded below). At one and a half times that
# length, what share of the answers is right with sinusoids? With rotary positions?

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
print(f"at {reversing.beyond} symbols, trained on at most {reversing.longest_trained}:")
print(f"sinusoidal: {reversing.sinusoidal_beyond:.0%}{guessed(my_guess_sinusoidal)}")
print(f"rotary:     {reversing.rotary_beyond:.0%}{guessed(my_guess_rotary)}")
for kind in sorted_out.scores:
    print(f"sorting, {kind}: {sorted_out.at(kind, sorted_out.beyond):.0%}")

# %% [markdown]
# **What goes wrong?** Right answers and what the network with sinusoids writes, one and a half times as long as
# anything in training:

# %%
for right, answer in reversing.examples:
    print(f"right:  {right}\nwritten {answer}\n")
for kind, share in reversing.begins_at_last_trained.items():
    print(f"{kind}: {share:.0%} of the answers begin with symbol number {reversing.longest_trained} of the source")

# %% [markdown]
# Chance would be one in the number of symbols. Where each position has a vector of its own, the network mostly begins
# with the last place that it knows, and not with the last symbol: what lies beyond is no place where an answer ever
# began. From there it goes backwards, leaving some symbols out. It has learned *places*, where the reader thought of "the
# end". With rotary positions there are no places to hold on to, and it fails in another way.
#
# **Said plainly.** Within the lengths of training it hardly matters which positions are taken; learned
# vectors lag a little at the longest, as each of them learns only from sources that reach it. Beyond them, on
# reversal, **nothing extrapolates**: not the sinusoids, though their table goes on for ever; not rotary positions,
# though they only know distances; nor learned ones. A formula that goes on is not a network that knows what to do
# with it: the weights have never seen those rows, or those distances, and nothing asked them to be right there.
#
# The right picture settles a second point. Sorting needs no order of the source at all, and there *fewer* positions
# reach further: the network without any has nothing that is new at a greater length but the number of tokens.
# Positions are information, and the network may tie itself to information that it does not need.
#
# What does help, outside of this notebook: train on the lengths that will be asked for; draw the positions of
# each sentence at random, in order, out of a longer range (Ruoss et al. 2023); make scores fall with distance (Press et al. 2022, ALiBi). And in use:
# `predict` cuts sources that are longer than the model was meant for, and says so, instead of hoping.
#
# These are small networks, few steps, and one seed. The lengths at which they fail are theirs; that sinusoids fail is
# found in large language models, too (Press et al. 2022, section 2; rotary positions reach somewhat further there).
#
# ## Exercises
#
# **1.** Which of these can be learned perfectly when the *encoder* has no positions and the decoder has? Give the set
# of those among `"reverse"`, `"copy"`, `"sort"`, `"count the words"`, `"name the largest"`, `"name the third word"`.

# %%
my_tasks = ...
check("positions-without", my_tasks)

# %% [markdown]
# **2.** Build the table without loops. `hint("positions-table")` gives one hint after the other.


# %%
def my_table(num_positions, d_model): ...


check("positions-table", my_table)

# %% [markdown]
# **3.** The 2 × 2 matrix that leads the pair (sine, cosine) of angular rate `rate` from any position to the one
# `offset` further.


# %%
def my_rotation(offset, rate): ...


check("positions-rotation", my_rotation)

# %% [markdown]
# **4.** The order of channels that makes of the interleaved table the concatenated one: `table[:, my_order(d_model)]`.


# %%
def my_order(d_model): ...


check("positions-layout", my_order)

# %%
hint("positions-rotation")

# %% [markdown]
# After trying: `solution("positions-rotation")`.

# %%
solution("positions-layout")

# %% [markdown]
# ## Paper against code
#
# | section 3.5 | here |
# |---|---|
# | sinusoids, interleaved, added to the embeddings of both halves | the same: `positions="sinusoidal"`, the default |
# | embeddings times $\sqrt{d_{model}}$ before the sum (3.4) | the same |
# | learned vectors, "nearly identical" | `positions="learned"`; starts at $N(0, 1/d_{model})$, on which the paper is silent |
# | — | **departures:** `rotary` (in self-attention only, never in cross-attention, where the two sides have no common ruler) and `none` |
# | angles in whatever precision | in float64: at some thousand radians a float32 angle is off in the fourth digit of its sine |
#
# ## What people get wrong
#
# - **"The sum of embedding and position mixes up what and where."** In a space of some hundred dimensions, the two can
#   be told apart by projections, which $W^Q$ and $W^K$ are. Section 2 shows it at work.
# - **A forgotten position is silent.** The sum is computed and never assigned, or a setting is missing: training goes
#   on, the loss falls, answers have the right words in a poor order (Lightning-AI/pytorch-lightning#19138,
#   OpenNMT/OpenNMT-py#2262). A test is one line: the two orders of section 1 must *differ*.
# - **"Sinusoids extrapolate."** The table does. The network does not.
# - **"Learned positions are limited by the data, sinusoids are not."** Both are limited by the data; learned ones say
#   so at `max_len`.
# - **Counting from 1, or counting padding.** Sources are padded on the right here, so a token's position does not
#   depend on its batch. With padding on the left, positions must be counted from the first real token.
#
# Next: [masks](masks.ipynb), the other thing that attention does not know by itself.

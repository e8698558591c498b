# %% [markdown]
# # The Transformer, by running, breaking and measuring it
#
# This notebook goes through the encoder-decoder Transformer of [*Attention Is All You Need*](https://arxiv.org/abs/1706.03762) (Vaswani
# et al. 2017), box by box, with the code that this package trains and ships. At its end you train a model of your own.
#
# **How to read it.** It takes four to six hours, from top to bottom, exercises included. Each chapter asks a question, and asks *you* for a
# guess before it answers: replace `...` by what you expect, then run. Then come the maths, ten naive lines, the installed source and a proof
# that both compute the same, a picture, an experiment with a number, and exercises with hints and a checker.
#
# **Write it yourself.** [build_it](build_it.ipynb) is the workshop beside this notebook: you write the same boxes, thirteen pieces of plain
# PyTorch, and end with a Transformer of your own that learns to pronounce English.
#
# **What you need.** Python, a little PyTorch (tensors, `@`, autograd), and what a softmax is. No GPU, no network.
#
# **The numbers.** Boxes that begin with *Measured* come from this very run; the command in them repeats that experiment alone. For each we
# wrote down the range we expected before we ran anything, and where we were wrong, the box says so. Claims about trained networks were also
# tried at a lower learning rate and for four times as many steps; where that gave something else, the box has those numbers, too.
#
# | chapters | | deeper |
# |---|---|---|
# | 0 | Figure 1, alive | |
# | 1, 2 | self-attention; multi-head attention | [looking inside](looking_inside.ipynb) |
# | 3 | positional encoding | [positions](positions.ipynb) |
# | 4 | feed-forward networks, position-wise | |
# | 5 | layer normalisation, residual connections | [norm and depth](norm_and_depth.ipynb) |
# | 6, 7 | encoder and decoder; masks | [masks](masks.ipynb) |
# | 8, 9 | training; decoding | [training recipe](training_recipe.ipynb) |
# | 10 | why it matters | [measured](why_it_matters.ipynb) |
# | 11 | your own model | [real translation](real_translation.ipynb), [break it](break_it.ipynb) |

# %%
import math

import torch
import torch.nn.functional as F

from transduce.inference.predictor import Predictor
from transduce.learn import Ledger, check, guessed, hint, solution, source_of
from transduce.learn.experiments import attention as attention_experiments
from transduce.learn.experiments import feed_forward as feed_forward_experiments
from transduce.learn.explained import explained
from transduce.learn.matrices_page import attention_page
from transduce.learn.pictures import attention as attention_pictures
from transduce.learn.pictures import figure1, maps
from transduce.learn.pictures import positions as position_pictures
from transduce.learn.tracing import SENTENCE, live_shapes, sentence_reverser, trace
from transduce.model import MultiHeadAttention, attention
from transduce.model.feed_forward import FeedForward
from transduce.model.positional import SinusoidalPositions

ledger = Ledger.load()


# %% [markdown]
# # 0 · Orientation: Figure 1, alive
#
# A Transformer turns one sequence into another. The **encoder** reads the source, all of it at once; the **decoder** writes the target,
# one token after the other, looking at the encoder's output and at what it has written so far.
#
# We need a trained model to look at. Let's train a small one, with the real tokenizer, on a task you can check by eye: *write the words of a
# sentence in reverse order*. It takes some fifteen seconds. Its **loss** is minus the natural logarithm of the probability that it gave to
# the right next token, averaged over all tokens; the unit is the *nat*. A model that guesses among $n$ tokens has a loss of $\ln n$.

# %%
reverser = sentence_reverser()
model, tokenizer = reverser.model, reverser.tokenizer
print(f"{sum(p.numel() for p in model.parameters()):,} parameters, trained on {reverser.num_sentences:,} sentences")
print(
    f"loss at the start {reverser.training.losses[0]:.2f}, at the end {reverser.training.losses[-1]:.3f} nats a token"
)
print(SENTENCE, "->", reverser.answer([SENTENCE])[0])
print(f"right, of sentences it never saw: {reverser.share_right:.0%}")

# %% [markdown]
# Here is Figure 1 of the paper, with the **shape of what leaves each box**, recorded while a batch of three sentences runs through. The
# axes are (sentences, tokens, channels); the number of channels is $d_\text{model}$.

# %%
lines = [SENTENCE, "a dog hears the old horse", "the fox sees a bird"]
padded = tokenizer.encode_source(lines)
src = torch.tensor([ids + [0] * (max(map(len, padded)) - len(ids)) for ids in padded])
shapes = live_shapes(model, src, src[:, :5])
figure1.figure_one(shapes, num_encoder_layers=2, num_decoder_layers=2)

# %% [markdown]
# Two things to notice now, both explained later. **Between the embedding and the last Linear no box changes the shape**: (3, tokens, 64)
# goes in and comes out, which is what lets layers be stacked and added. And **only attention mixes tokens**: every other box handles each
# token separately.
#
# ### One sentence, traced
#
# Text becomes *pieces*, pieces become *ids* (row numbers of a table), rows of the table become vectors.

# %%
traced = trace(model, tokenizer, SENTENCE)
print("text      ", traced.text)
print("pieces    ", *traced.source)
print("ids       ", *traced.source_ids)
print(
    "embedding of", traced.source[0], "times √d_model:", [round(x, 2) for x in traced.embedded[0, :6].tolist()], "..."
)
print("position 0                             :", [round(x, 2) for x in traced.positions[0, :6].tolist()], "...")
after = traced.steps["encoder.layers.0.residual_1"][0, :6]
print("after attention, Add & Norm of layer 1 :", [round(x, 2) for x in after.tolist()], "...")

# %% [markdown]
# On the other side of the network, the decoder has been given the begin symbol and what it wrote. At each place it scores all pieces
# (*logits*), the softmax turns scores into probabilities, and the likeliest piece is the next one:

# %%
for place in range(3):
    best = traced.next_tokens(tokenizer, place, 3)
    told = ", ".join(f"{name} {chance:.3f} (logit {score:.1f})" for name, score, chance in best)
    print(f"after {traced.written[place]:8} {told}")

# %% [markdown]
# The whole of it, to step through: arrow keys move from token to token, a click on a thumbnail enlarges a head. (Outside a notebook:
# `transduce explain RUN TEXT -o page.html` writes such a page for any trained run.)

# %%
explained(Predictor(model, tokenizer), "the old dog finds a fox", height=900)

# %% [markdown]
# # 1 · Self-attention
#
# **Question.** Each token should know about others: *it* about what it stands for, an adjective about its noun. How can a network fetch
# information from *somewhere else in the sentence*, when it is not known beforehand from where?
#
# Think of a dictionary: a **query** is compared with **keys**, and the **value** of the matching key comes back. Attention is a
# dictionary that is soft: every key matches a little, and what comes back is a mixture of all values, by how well their keys match. An
# exact match has no gradient. A soft one does, so the network can *learn* what to ask for.
#
# **Predict.** Twenty random keys, vectors of 256 numbers drawn from $N(0, 1)$, and a random query. How large is the largest of the twenty
# weights, if weights are the softmax of the products $q \cdot k$?

# %%
my_largest = ...

# %% [markdown]
# **Maths** (equation 1, section 3.2.1):
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V$$
#
# | symbol | shape | what it is |
# |---|---|---|
# | $Q$ | $T \times d_k$ | queries, one row for each of $T$ tokens that look |
# | $K$ | $S \times d_k$ | keys, one row for each of $S$ tokens that are looked at |
# | $V$ | $S \times d_v$ | values, what each of those has to give |
# | $QK^\top$ | $T \times S$ | scores: how well query $i$ matches key $j$ |
# | softmax | | over each row: weights above 0 that add up to 1 |
# | $d_k$ | | number of channels of a query or key |
#
# In *self*-attention all three are made of the same tokens $X$ by learned matrices: $Q = XW^Q$, $K = XW^K$, $V = XW^V$.
#
# **Naive version**, one query after the other:


# %%
def naive_attention(q, k, v):
    out = torch.zeros(len(q), v.size(1), dtype=q.dtype)
    for i in range(len(q)):
        scores = [float(q[i] @ k[j]) / math.sqrt(q.size(1)) for j in range(len(k))]
        total = sum(math.exp(s) for s in scores)
        for j in range(len(k)):
            out[i] += math.exp(scores[j]) / total * v[j]
    return out


# %% [markdown]
# **Equality** with the installed function, and with torch's fused kernel:

# %%
source_of(attention)

# %%
random = torch.Generator().manual_seed(1)
q, k, v = (torch.randn(n, 6, dtype=torch.float64, generator=random) for n in (5, 5, 5))
mixed, weights = attention(q, k, v)
assert torch.allclose(naive_attention(q, k, v), mixed, atol=1e-12)
assert torch.allclose(F.scaled_dot_product_attention(q[None], k[None], v[None])[0], mixed, atol=1e-12)
assert torch.allclose(weights.sum(dim=1), torch.ones(5, dtype=torch.float64))
print("naive = shipped = torch; every row of weights adds up to 1")

# %% [markdown]
# **Picture.** Five tokens, five matrices. Row *sees* of the weights says in which proportions the rows of $V$ are mixed to give row
# *sees* of the result. The numbers are random here: the picture shows the mechanics, and who looks at whom means nothing.

# %%
words = ["the", "dog", "sees", "a", "cat"]
maps.linked_matrices(q, k, weights, v, mixed, queries=words, keys=words)

# %% [markdown]
# The same to point at: each cell shows the arithmetic it came from.

# %%
attention_page(q, k, v, queries=words, keys=words)

# %% [markdown]
# **Experiment.** Why the $\sqrt{d_k}$? If the numbers of $q$ and $k$ are independent, with mean 0 and variance 1, $q \cdot k$ has mean 0
# and variance $d_k$ (the paper's footnote 4): the wider, the larger the scores, and the softmax of large numbers is nearly all on one key.
# Once one weight is close to 1, softmax is flat: nudging a score barely moves the weights, so almost no gradient comes back.

# %%
saturated = attention_experiments.saturation()
print(f"largest weight at d_k = 256, without the root: {saturated.unscaled_largest:.2f}{guessed(my_largest)}")
attention_pictures.saturation_curves(saturated)

# %%
ledger.settle("root-unscaled-softmax-saturates", saturated)

# %%
ledger.settle("root-saturated-softmax-hands-back-little", saturated)

# %% [markdown]
# That is at the start. Does it matter once a network *trains*? The same network, one head of $d_k = 128$, with the division and without:

# %%
root = attention_experiments.training_without_root()
attention_pictures.root_curves(root)

# %%
ledger.settle("root-training-without-it", root)

# %% [markdown]
# **Exercises.** 1. By hand: the scores, divided already, are $\ln 1$ and $\ln 3$, the values (4, 4) and (8, 4). What comes out?

# %%
my_output = ...  # two numbers
check("attention-two-keys", my_output)


# %%
def my_attention(q, k, v, mask=None):
    """2. Equation 1, for q, k and v of shape (batch, heads, len, d_k); the mask, if there is one, is (len, len), True
    where a query may look at a key. Returns the output alone."""
    ...


check("attention-function", my_attention)

# %%
# 3. Which of these leave the OUTPUT of attention as it is? A set of them.
#    "add 5 to one row of scores", "add 5 to all scores", "add 5 to one column of scores", "multiply all scores by 2",
#    "add the same vector to every key", "add the same vector to every value"
my_changes = ...
check("attention-shift", my_changes)


# %%
def my_derivative(weights, values):
    """4. For one query: d output / d scores, one row for each key, from its weights (keys) and values (keys, channels)."""
    ...


check("attention-derivative", my_derivative)

# %% [markdown]
# `hint("attention-two-keys")` gives one hint after the other, `solution("attention-two-keys")` an answer:

# %%
hint("attention-two-keys")

# %% [markdown]
#
# **What people get wrong.** *"Softmax over which axis?"* Over the keys: each **query** has one whole weight to share out. *"The weights
# say why."* They say where a head looked, not what it made of it ([looking inside](looking_inside.ipynb)).
#
# # 2 · Multi-head attention
#
# **Question.** One attention gives each token *one* mixture. What if it needs two things from two places?
#
# **Predict.** A task: at every place, name the previous symbol *and* the first one. One attention layer, 64 channels. What share of
# places does one head get right, and what share four heads of 16 channels, with the same number of parameters?

# %%
my_one, my_four = ..., ...

# %% [markdown]
# **Maths** (section 3.2.2, here for self-attention, and with $d_v = d_k$ as in the paper's models):
#
# $$\mathrm{MultiHead}(X) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\, W^O, \qquad
# \mathrm{head}_i = \mathrm{Attention}(X W_i^Q,\ X W_i^K,\ X W_i^V)$$
#
# | symbol | shape | what it is |
# |---|---|---|
# | $h$ | | number of heads; the paper's base model has 8 |
# | $W_i^Q, W_i^K, W_i^V$ | $d_\text{model} \times d_k$ | what head $i$ asks, offers and gives |
# | $d_k$ | | $d_\text{model} / h$: the heads share the channels among them |
# | $W^O$ | $d_\text{model} \times d_\text{model}$ | mixes what the heads found |
#
# **Naive version**: a loop over heads. **Equality** with the installed module, whose $W^Q, W^K, W^V$ of all heads lie in one matrix.


# %%
def naive_multi_head(x, module):
    d, h = x.size(-1), module.num_heads
    projected = x @ module.qkv_proj.weight.T + module.qkv_proj.bias
    q, k, v = projected.split(d, dim=-1)
    width = d // h
    heads = [attention(*(part[..., i * width : (i + 1) * width] for part in (q, k, v)))[0] for i in range(h)]
    return torch.cat(heads, dim=-1) @ module.out_proj.weight.T + module.out_proj.bias


torch.manual_seed(1)
module = MultiHeadAttention(d_model=24, num_heads=4).double()
x = torch.randn(2, 7, 24, dtype=torch.float64)
assert torch.allclose(naive_multi_head(x, module), module(x), atol=1e-12)

theirs = torch.nn.MultiheadAttention(24, 4, batch_first=True).double()
theirs.load_state_dict({"in_proj_weight": module.qkv_proj.weight, "in_proj_bias": module.qkv_proj.bias,
                        "out_proj.weight": module.out_proj.weight, "out_proj.bias": module.out_proj.bias})  # fmt: skip
assert torch.allclose(theirs(x, x, x, need_weights=False)[0], module(x), atol=1e-12)
print("a loop over heads = MultiHeadAttention = torch.nn.MultiheadAttention")

# %%
source_of(MultiHeadAttention.forward, MultiHeadAttention.combine)

# %% [markdown]
# **Experiment.** One mixture of two things is not two things:

# %%
found = attention_experiments.two_look_ups()
for name, guess in (("1 head", my_one), ("4 heads", my_four)):
    print(f"{name}: {found.both[name]:.0%} of places right, {found.num_parameters[name]:,} parameters{guessed(guess)}")
attention_pictures.look_up_bars(found)

# %%
ledger.settle("four-heads-learn-two-look-ups-sooner", found)

# %%
attention_pictures.look_up_maps(found, "4 heads", "symbol ")

# %% [markdown]
# Read the rows: a head that looks one to the left has its weights just below the diagonal, one that looks at the first symbol has them in
# the first column. And the network with one head:

# %%
attention_pictures.look_up_maps(found, "1 head", "symbol ")

# %% [markdown]
# The single head has one row of weights for both questions. It looks at the first symbol and names that always; the previous one it names
# no better than by guessing (one in ten). A feed-forward network behind it does not help: it cannot compute from what was not fetched.
#
# **Picture.** Every head of our trained reverser, where the decoder looks at the source:

# %%
cross = {f"layer {i + 1}": traced.attention[f"decoder.layers.{i}.cross_attention"] for i in range(2)}
maps.head_maps(cross, queries=traced.written, keys=traced.source)

# %% [markdown]
# **Exercises.**


# %%
def my_split(x, num_heads):
    """1. (batch, len, d_model) -> (batch, heads, len, head_dim): head 0 has the first channels of every position."""
    ...


check("heads-split", my_split)


# %%
def my_count(d_model, num_heads):
    """2. Parameters of multi-head attention, biases included."""
    ...


check("heads-parameters", my_count)

# %% [markdown]
# **Paper against code.** The paper's projections have no biases in its formulas; ours have them, as in torch. The authors' code has dropout
# on attention weights since October 2017 (tensor2tensor's `base_v2`); in June it was 0, the paper does not mention it, and we have none.
#
# **What people get wrong.** *"Eight heads cost eight times as much."* They share the channels: the same parameters, the same products; only the
# softmax has $h$ maps to do instead of one.
# *"Split by `view`."* `(B, T, D)` must become `(B, T, H, K)` and then be transposed; a view straight to `(B, H, T, K)` mixes tokens
# ([patients with that illness](break_it.ipynb)).
#
# # 3 · Positional encoding
#
# **Question.** Attention is a sum over tokens. A sum does not know in which order its terms came. How does the network know that *dog
# bites man* is not *man bites dog*?
#
# **Predict.** Shuffle the tokens that go into self-attention. What happens to what comes out: the same numbers in another order, or other
# numbers?

# %%
my_guess = ...

# %%
order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
same_but_shuffled = torch.allclose(module(x[:, order]), module(x)[:, order], atol=1e-12)
print(f"the same numbers, shuffled: {same_but_shuffled}{guessed(my_guess)}")

# %% [markdown]
# So order must be *put in*. **Maths** (section 3.5): to the vector of the token at position $pos$ a vector is added whose channels are
# sines and cosines of growing wavelength:
#
# $$PE_{(pos,\,2i)} = \sin\!\big(pos / 10000^{2i/d}\big), \qquad PE_{(pos,\,2i+1)} = \cos\!\big(pos / 10000^{2i/d}\big)$$
#
# | symbol | what it is |
# |---|---|
# | $pos$ | position in the sequence, from 0 |
# | $i$ | number of a pair of channels, from 0 to $d/2 - 1$ |
# | $d$ | $d_\text{model}$ |

# %%
positions = SinusoidalPositions(d_model=32)
added = positions(torch.zeros(1, 60, 32), torch.arange(60))[0]
naive = torch.tensor(
    [[(math.cos if c % 2 else math.sin)(p / 10000 ** (2 * (c // 2) / 32)) for c in range(32)] for p in range(60)]
)
assert torch.allclose(added, naive, atol=1e-6)
position_pictures.table_and_similarity(added)

# %% [markdown]
# Embeddings are multiplied by $\sqrt{d_\text{model}}$ before positions are added (section 3.4). **Everyone asks why; here it is
# measured.** The matrix is shared with the output, where it must be small for the first logits to be about 1 and not about
# $\sqrt{d_\text{model}}$: its rows are drawn with length 1. A row of the sinusoids has length $\sqrt{d/2}$. Without the factor, the symbol drowns in its position, until the embeddings have
# grown.

# %%
scale = attention_experiments.embedding_scale()
print(f"length of a position's row: {scale.length_of_positions:.1f}")
for name, length in scale.length_of_embeddings.items():
    print(
        f"length of an embedding, {name:24} {length:5.1f}; loss at the start {scale.starts[name]:5.2f}, at the end {scale.ends[name]:.2f}"
    )

# %%
ledger.settle("embedding-factor-speeds-learning", scale)

# %%
ledger.settle("embedding-factor-on-sorting", scale)

# %%
attention_pictures.scale_curves(scale)

# %% [markdown]
# So it is a matter of speed, not of "numerical stability", as one often reads: on reversal, with the one seed that was trained for longer,
# the network without the factor catches up and ends lower (the panel on the right; its schedule was longer, too, and sorting was not
# tried). Could one not draw larger embeddings instead, and leave the factor out? With one matrix for embedding and output, no; the rows
# printed above say where they start and where they are after the same steps. With two matrices, yes.

# %%
ledger.settle("embedding-one-matrix-two-jobs", scale)

# %% [markdown]
# What else there is to know about positions (order blindness as an exact law, learned and rotary positions, and whether the sinusoid
# reaches further than it was trained) has [a notebook of its own](positions.ipynb).

# %%
# Exercise: how long is a row of the sinusoids (the root of its sum of squares) with d_model = 512, at any position?
my_length = ...
check("embedding-length", my_length)

# %% [markdown]
# **What people get wrong.** *"It is concatenated."* It is added. *"`x + pe` is enough."* If the sum is not assigned, positions are
# computed and thrown away; the loss still falls ([break it](break_it.ipynb)).
#
# # 4 · Feed-forward networks, position-wise
#
# **Question.** Attention collects information. What then does something with it? It is often said: attention moves things, the feed-forward network alone
# computes. For given weights a head is a linear map, indeed; but the weights depend on what is there.
#
# **Maths** (equation 2, section 3.3): the same small network for every position by itself,
#
# $$\mathrm{FFN}(x) = \max(0,\ xW_1 + b_1)\,W_2 + b_2$$
#
# | symbol | shape | what it is |
# |---|---|---|
# | $x$ | $d_\text{model}$ | the vector of one token |
# | $W_1$ | $d_\text{model} \times d_{ff}$ | widens, usually four times; $d_{ff}$ is 2,048 in the base model |
# | $W_2$ | $d_{ff} \times d_\text{model}$ | narrows again |
# | $b_1$, $b_2$ | $d_{ff}$, $d_\text{model}$ | biases |
#
# **Position-wise** means: no token sees another here. Equal rows in give equal rows out, and shuffled rows give shuffled rows. It is two
# *convolutions of width one*, as the paper says:

# %%
torch.manual_seed(2)
network = FeedForward(24, 96).double()
y = network(x)
assert torch.allclose(network(x[:, order]), y[:, order])
by_hand = (x @ network.up_proj.weight.T + network.up_proj.bias).clamp(
    min=0
) @ network.down_proj.weight.T + network.down_proj.bias
wide = F.conv1d(x.transpose(1, 2), network.up_proj.weight[:, :, None], network.up_proj.bias).relu()
narrow = F.conv1d(wide, network.down_proj.weight[:, :, None], network.down_proj.bias).transpose(1, 2)
assert torch.allclose(by_hand, y) and torch.allclose(narrow, y)
source_of(FeedForward)

# %% [markdown]
# **Experiment.** Something that has to be computed: at each place, the sum of two neighbouring symbols modulo a prime. Attention can
# fetch both; can it add them? One whole layer against three layers of attention alone, which have as many parameters. **Predict** the
# share of places right.

# %%
my_with, my_without = ..., ...

# %%
alone = feed_forward_experiments.attention_alone()
for name, guess in zip(alone.scores, (my_with, ..., my_without), strict=True):
    print(f"{name:26} {alone.scores[name]:4.0%} right, {alone.num_parameters[name]:,} parameters{guessed(guess)}")
attention_pictures.attention_alone_curves(("the sum of two neighbours modulo 11", alone))

# %%
ledger.settle("ffn-attention-alone-and-a-rule", alone)

# %%
ledger.settle("ffn-learns-rules-sooner", alone)

# %% [markdown]
# The saying is wrong, then: layers of attention do learn a rule, only more slowly. Now something that has no rule: a *table* of random entries, one for each pair
# of symbols, which can only be remembered.

# %%
table = feed_forward_experiments.random_table()
attention_pictures.attention_alone_curves((f"a random table of {table.num_entries:,} entries", table))

# %%
ledger.settle("ffn-learns-tables-sooner", table)

# %% [markdown]
# **Exercises.**

# %%
# 1. Which of these are position-wise? A set out of: "ReLU", "a linear layer on the channels", "layer normalisation",
#    "softmax over the keys", "the mean of all positions", "adding the row of its position"
my_set = ...
check("ffn-position-wise", my_set)


# %%
def my_convolutions(feed_forward):
    """2. The same function as a torch.nn.Sequential with two nn.Conv1d of width 1: (batch, channels, len) in and out."""
    ...


check("ffn-convolutions", my_convolutions)


# %%
def my_share(d_model, d_ff):
    """3. Share of an encoder layer's weights (no biases, no norms) that is in the feed-forward network."""
    ...


check("ffn-share", my_share)

# %% [markdown]
# **What people get wrong.** *"Attention is all you need."* The title says so; most of the weights are not attention, and what has to be remembered is kept
# in the feed-forward networks. *"It mixes positions."* It cannot: it never sees two of them at once.

# %% [markdown]
# # 5 · Layer normalisation and residual connections
#
# **Question.** After every attention and every feed-forward network, Figure 1 has the same small box: "Add & Norm". What does the addition
# do, what does the norm do, and does their order matter?
#
# Short answer: the addition leaves a way from the first layer to the last on which nothing is lost; the norm keeps the size of numbers
# known; and their order decides what a gradient meets on its way back.

# %%
import torch
import torch.nn.functional as F
from torch import nn

from transduce.learn import Ledger, check, hint, source_of
from transduce.learn.experiments import architecture, norms
from transduce.learn.pictures import architecture as architecture_pictures
from transduce.learn.pictures import masks as mask_pictures
from transduce.learn.pictures import norms as norm_pictures
from transduce.learn.tasks import PAD, reversal
from transduce.learn.training import exact_match, small_transformer
from transduce.model import causal_mask, padding_mask
from transduce.model.decoder import DecoderLayer
from transduce.model.encoder import EncoderLayer
from transduce.model.residual import AddAndNorm

# %% [markdown]
# **Predict.** A token's vector is `[1, 0, 0, 0]`. Its layer normalisation has mean 0 and mean square 1. What is its first number?

# %%
my_guess_first = ...

# %% [markdown]
# **Maths.** For the vector $x$ of *one* token:
#
# $$\mathrm{LayerNorm}(x)_i = g_i \, \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} + b_i, \qquad
#   \mu = \frac1d \sum_i x_i, \qquad \sigma^2 = \frac1d \sum_i (x_i - \mu)^2 .$$
#
# | symbol | meaning |
# |---|---|
# | $x$, $d$ | the vector of one token, and its length ($d_\text{model}$) |
# | $\mu$, $\sigma^2$ | mean and variance of its $d$ numbers; divided by $d$, not by $d - 1$ |
# | $\epsilon$ | a small number, $10^{-5}$ here, *inside* the root: a constant vector becomes 0, not 0/0 |
# | $g$, $b$ | gain and bias, $d$ learned numbers each; 1 and 0 at the start |
#
# The sum runs over channels of one token: neither other tokens, nor other sentences, nor padding have a say. Around each sub-layer $f$
# (attention or feed-forward) stands one of
#
# $$\text{post-norm (paper, section 3.1): } \mathrm{LayerNorm}\big(x + f(x)\big) \qquad\qquad
#   \text{pre-norm: } x + f\big(\mathrm{LayerNorm}(x)\big) .$$
#
# **Naive version**, and **equality** with `nn.LayerNorm`:


# %%
def naive_layer_norm(x, gain, bias, eps=1e-5):
    mean = x.sum(-1, keepdim=True) / x.size(-1)
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.size(-1)
    return gain * (x - mean) / (variance + eps).sqrt() + bias


random = torch.Generator().manual_seed(1)
x = torch.randn(2, 5, 8, dtype=torch.float64, generator=random) * 3 + 1
norm = nn.LayerNorm(8, eps=1e-5).double()
nn.init.normal_(norm.weight, generator=random)
nn.init.normal_(norm.bias, generator=random)
assert torch.allclose(naive_layer_norm(x, norm.weight, norm.bias), norm(x), atol=1e-12)

# %% [markdown]
# **The trap.** `x.std()` divides by $d - 1$ (Bessel's correction), and many hand-written norms put $\epsilon$ outside the root. The code
# runs and trains. With the weights of another implementation it is wrong, and at small $d$ by much:

# %%
one = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
right = F.layer_norm(one, (4,), eps=1e-5)
bessel = (one - one.mean()) / (one.std() + 1e-5)
print(f"right {right[0]:.3f}, with d - 1 {bessel[0]:.3f}{guessed(my_guess_first)}")
assert f"{right[0]:.3f} {bessel[0]:.3f}" == "1.732 1.500"

# %% [markdown]
# Now the whole wrapper, as installed, and by hand. Dropout, which sets a random tenth of the numbers to 0 during training so that the network
# does not rely on any one of them, sits on the sub-layer's output, before the addition; here it is 0.

# %%
source_of(AddAndNorm)

# %%
sublayer = nn.Linear(8, 8).double()
for norm_first in (False, True):
    shipped = AddAndNorm(8, 0.0, "layer", norm_first).double()
    by_hand = x + sublayer(shipped.norm(x)) if norm_first else shipped.norm(x + sublayer(x))
    assert torch.allclose(shipped(x, sublayer), by_hand, atol=1e-12)

# %% [markdown]
# **What difference does the order make?** Under post-norm the sum itself is normalised, again and again: whatever leaves a layer has
# known size, but the way through passes every norm. Under pre-norm nothing touches the sum. So what leaves the last layer is what came
# in, plus what each sub-layer has said:
#
# $$x_\text{final} = x_0 + \sum_{k=1}^{2N} f_k\big(\mathrm{LayerNorm}(x_{k-1})\big), \qquad
#   \frac{\partial x_\text{final}}{\partial x_0} = I + \dots$$
#
# with $N$ layers of two sub-layers $f_k$ each, and $x_k$ the sum after $k$ of them. The sum is called the **residual stream**; sub-layers
# read from it and write to it. The identity $I$ is the way on which a gradient arrives undiminished, however deep the stack. One norm
# closes the stack, since nothing else has.
#
# **Experiment.** Hooks on an encoder of six layers collect what every sub-layer writes:

# %%
found = norms.stream()
ledger.settle("the-residual-stream-is-a-sum", found)

# %%
norm_pictures.stream_bars(found)

# %% [markdown]
# **Picture.** Bars: what each sub-layer of the untrained encoder adds. Line: the sum so far. It grows like the root of the number of terms:
# unrelated vectors are nearly orthogonal, so their squared lengths add up. So a late sub-layer changes the direction of
# the stream less than an early one. Under post-norm the line would be flat at 1.
#
# What becomes of a stack without the addition, why post-norm wants warm-up, and what the gradients look like: twelve layers are trained
# in [norm and depth](norm_and_depth.ipynb).
#
# **Exercises.**
#
# **1.** Layer normalisation without gain and bias: `x` of shape (tokens, channels), $\epsilon = 10^{-5}$.


# %%
def my_layer_norm(x): ...


check("norms-layer-norm", my_layer_norm)

# %% [markdown]
# **2.** Pre-norm: three arguments, one line.


# %%
def my_pre_norm(x, sublayer, norm): ...


check("norms-pre-norm", my_pre_norm)

# %% [markdown]
# **3.** The input of a pre-norm encoder of twelve layers, and what each sub-layer adds, are independent; each has mean 0 and a root mean
# square of 1. What is the root mean square of the stream at the end?

# %%
my_size = ...
check("norms-growth", my_size)

# %%
hint("norms-growth")

# %%
solution("norms-pre-norm")

# %% [markdown]
# **Paper against code**
#
# | section 3.1 | here |
# |---|---|
# | $\mathrm{LayerNorm}(x + \mathrm{Sublayer}(x))$ | the default |
# | no other order | `norm_first = true`: pre-norm (Xiong et al. 2020), with a final norm on each stack |
# | LayerNorm (Ba et al. 2016) | the default; `norm = "rms"` leaves out mean and bias (Zhang and Sennrich 2019) |
# | $\epsilon$ not given | $10^{-5}$ |
#
# **What people get wrong**
#
# - **"Layer norm is batch norm turned round, and normalises over the sentence."** It takes one token at a time. Change
#   any other token, and this one's norm stays (that is why it does not care for padding).
# - **"Add and norm are one detail."** They do different things, and their order is the first thing to check when
#   weights are moved from one implementation to another: shapes are equal, so nothing complains.
# - **"Pre-norm is post-norm with the line moved."** It also needs the norm at the end; without it, the output layer
#   sees a stream of any size.
# - **"A normalised vector has length 1."** Its root mean square is 1: its length is $\sqrt d$.

# %% [markdown]
# # 6 · Encoder and decoder
#
# **Question.** All parts are there. How do they become *two* stacks, how do the two talk, and how do we know that the whole is right
# before a single hour of training?
#
# The encoder reads the source, once, and leaves one vector for each of its tokens: the **memory**. The decoder writes the target, and at
# every layer it may ask that memory.

# %% [markdown]
# **Predict.** The base model has $d_\text{model} = 512$, $d_\text{ff} = 2048$, six layers on each side and some 37,000 subwords that both
# languages share. Where are most of its parameters: in `"embedding"`, `"attention"`, or `"feed-forward"`? And how many million are there
# in all?

# %%
my_guess_where, my_guess_millions = ..., ...

# %% [markdown]
# **Maths.** With $\mathrm{AN}_f(x) = \mathrm{LayerNorm}(x + f(x))$ for the Add & Norm of chapter 5, one layer of each side is
#
# $$\text{encoder:}\quad x \;\to\; \mathrm{AN}_{\mathrm{self}} \;\to\; \mathrm{AN}_{\mathrm{ffn}} \qquad\qquad
#   \text{decoder:}\quad y \;\to\; \mathrm{AN}_{\mathrm{masked\ self}} \;\to\; \mathrm{AN}_{\mathrm{cross}} \;\to\;
#   \mathrm{AN}_{\mathrm{ffn}}$$
#
# | symbol | meaning | shape |
# |---|---|---|
# | $x$ | source vectors on their way up the encoder | (batch, source length, $d_\text{model}$) |
# | $z$ | the memory: what leaves the last encoder layer | the same |
# | $y$ | target vectors on their way up the decoder | (batch, target length, $d_\text{model}$) |
# | self | queries, keys and values all of $x$ (or all of $y$) | |
# | cross | queries of $y$; keys and values of $z$ | |
# | $N$ | layers on each side: 6 in the base model | |
#
# No sub-layer changes the shape of what it gets. That is why they can be stacked, and why one can be added or taken out without touching
# the others.
#
# The same attention is used in **three** ways, and they differ in two things alone, who asks whom and what is hidden:
#
# | attention | queries | keys and values | hidden |
# |---|---|---|---|
# | encoder, itself | source | source | padding |
# | decoder, itself | target | target | the future |
# | cross-attention | target | source | padding of the source |
#
# The code, as installed:

# %%
source_of(EncoderLayer, DecoderLayer)

# %% [markdown]
# **Naive version.** Everything at once, in a dozen lines, out of parts that the chapters before have taken apart:


# %%
def naive_transformer(model, src, tgt_in):
    looks_at_source = padding_mask(src, PAD)
    x = model.src_positions(model.src_embedding(src) * model.config.d_model**0.5, torch.arange(src.size(1)))
    for layer in model.encoder.layers:
        x = layer.residual_1.norm(x + layer.self_attention(x, mask=looks_at_source))
        x = layer.residual_2.norm(x + layer.feed_forward(x))
    y = model.tgt_positions(model.tgt_embedding(tgt_in) * model.config.d_model**0.5, torch.arange(tgt_in.size(1)))
    for layer in model.decoder.layers:
        y = layer.residual_1.norm(y + layer.self_attention(y, mask=causal_mask(tgt_in.size(1))[None, None]))
        y = layer.residual_2.norm(y + layer.cross_attention(y, x, mask=looks_at_source))
        y = layer.residual_3.norm(y + layer.feed_forward(y))
    return y @ model.tgt_embedding.weight.T


# %%
task = reversal(10, 3, 7)
model = small_transformer(task.vocabulary).double().eval()
batch = task.draw(4, torch.Generator().manual_seed(1))
with torch.no_grad():
    shipped = model.logits(model(batch.src, batch.tgt_in))
    assert torch.allclose(naive_transformer(model, batch.src, batch.tgt_in), shipped, atol=1e-10)
print("source", tuple(batch.src.shape), " target", tuple(batch.tgt_in.shape), " scores", tuple(shipped.shape))

# %% [markdown]
# **Equality with somebody else's.** Our own code agreeing with our own code proves little. So: `torch.nn.Transformer`, which other people
# wrote, gets the same weights and the same padded batch. That takes new names for the parameters, and masks turned round (its `True`
# means "hidden"; chapter 7):

# %%
source_of(architecture.torch_transformer, architecture.hidden_by_torch)

# %%
beside = architecture.beside_torch()
ledger.settle("architecture-equals-torch", beside)

# %% [markdown]
# Post-norm and pre-norm both, three encoder and two decoder layers, every weight moved away from where it starts: gains that are all 1
# and biases that are all 0 would hide mistakes.
#
# A surprise on the way. Left as it comes, `torch.nn.Transformer` has one more norm after each stack, in post-norm, too. Figure 1 has
# none. With fresh gains that changes hardly anything (to normalise twice is to normalise once), so it is easily missed; with trained ones
# it does:

# %%
print(f"with torch's closing norms: up to {beside.with_torchs_closing_norm:.2g} apart")
assert beside.with_torchs_closing_norm > 1e6 * beside.largest_difference

# %% [markdown]
# **Experiment: one batch by heart.** The cheapest test of a whole network *and* of the code that trains it. Sixteen pairs, again and
# again. With dropout and label smoothing off (smoothed, the loss cannot reach 0) it must go to zero; if it does not, no amount of data
# will help: something is not connected.

# %%
heart = architecture.by_heart()
architecture_pictures.by_heart_curve(heart)

# %%
ledger.settle("architecture-learns-a-batch-by-heart", heart)

# %%
known = exact_match(heart.model, heart.batch)
new = exact_match(heart.model, task.draw(200, torch.Generator().manual_seed(9)))
print(f"answers right: {known:.0%} of the batch it knows, {new:.0%} of new sources")

# %% [markdown]
# By heart is not understood: of new sources it knows next to nothing. The test says that everything *can* learn, not that anything worth
# knowing was learnt. That takes fresh data (chapter 8).
#
# **Picture.** The three attentions of that network, on one row of its batch (last layers, mean over heads). Symbols are numbers; 1
# begins, 2 ends. Look at the shapes of the three maps, and at the empty corner of the second:

# %%
row = max(range(16), key=lambda row: int((heart.batch.src[row] != PAD).sum()))
source, target = ([str(i) for i in ids[row].tolist() if i != PAD] for ids in (heart.batch.src, heart.batch.tgt_in))
architecture_pictures.three_attentions(heart, row, source, target)

# %% [markdown]
# Had it learnt to reverse, the map on the right would be a diagonal from the bottom left to the top right, or near to it. It has learnt
# sixteen rows instead, and a network that can tell them apart by anything need not look at the right symbol. (What maps can and cannot
# say: [looking inside](looking_inside.ipynb).)
#
# **Step by step.** In training the decoder sees the whole target at once. In use there is no target yet: it writes one token, and that
# token is its next input. Computing everything anew for each token would be wasteful; keys and values of earlier tokens do not change,
# since nobody looks ahead. So they are kept: the **cache**. That both ways are the same function is a thing to prove, not to hope:

# %%
stepwise = architecture.steps()
ledger.settle("architecture-a-step-is-a-pass", stepwise)

# %%
source_of(DecoderLayer.step)

# %% [markdown]
# **How large is it?** The base model, counted in the shipped network (on a device without memory, so it costs nothing), and by formula.
# With $V$ subwords, $d = d_\text{model}$ and $f = d_\text{ff}$:
#
# $$\underbrace{V d}_{\text{embedding = output}} + \;N \big(\underbrace{4 (d^2 + d)}_{\text{attention}} +
#   \underbrace{2 d f + f + d}_{\text{feed-forward}} + \underbrace{2 \cdot 2 d}_{\text{norms}}\big) +\;
#   N \big(2 \cdot 4 (d^2 + d) + 2 d f + f + d + 3 \cdot 2 d\big)$$

# %%
V, d, f, N = 37_000, 512, 2048, 6
attention_size, feed_forward_size, norm_size = 4 * (d * d + d), 2 * d * f + f + d, 2 * d
encoder_size = N * (attention_size + feed_forward_size + 2 * norm_size)
decoder_size = N * (2 * attention_size + feed_forward_size + 3 * norm_size)
size = architecture.size()
assert V * d + encoder_size + decoder_size == size.base
print(f"{V * d:,} + {encoder_size:,} + {decoder_size:,} = {size.base:,}" + guessed(my_guess_millions, my_guess_where))

# %%
architecture_pictures.parameter_bars(size)

# %%
ledger.settle("architecture-size-of-base", size)

# %%
print(f"65 million in all would need a vocabulary of {size.tokens_for_65_million:,.0f}")

# %% [markdown]
# "About 37,000 tokens" (section 5.1) hardly stretches to that, nor do biases and norms explain it; the paper does not say what was
# counted. Feed-forward networks have the most (25.2 of 63.1 million); embedding and attention have 18.9 each. What holds for any
# vocabulary: the sinusoids add nothing, heads add nothing, and the output matrix is the embedding again (section 3.4). In untied networks the same table is paid
# for up to three times.
#
# **Exercises.**
#
# **1.** A decoder layer, post-norm. `attend(x)` looks at the target's own past, `look_at(x, memory)` at the source; `norms` has three.


# %%
def my_decoder_layer(x, memory, attend, look_at, feed_forward, norms): ...


check("architecture-decoder-layer", my_decoder_layer)

# %% [markdown]
# **2.** In cross-attention, where do queries, keys and values come from? Three words, each `"encoder"` or `"decoder"`.

# %%
my_sides = ...
check("architecture-who-asks", my_sides)

# %% [markdown]
# **3.** The number of parameters of one encoder layer, biases and norms included.


# %%
def my_layer_size(d_model, d_ff): ...


check("architecture-layer-size", my_layer_size)

# %%
hint("architecture-layer-size")

# %%
solution("architecture-decoder-layer")

# %% [markdown]
# **Paper against code**
#
# | section | paper | here |
# |---|---|---|
# | 3.1 | $N = 6$ on both sides | two settings; they may differ |
# | 3.1 | every decoder layer looks at the memory | the same; one product makes the keys and values of all layers |
# | 3.1 | nothing after the last layer | the same; a closing norm under pre-norm alone |
# | 3.4 | the softmax ranges over the joint vocabulary | over ids of targets; all with `VocabularySizes.joint(V)` |
# | silent | biases in the projections | yes, as in torch; the counts above have them |
#
# **What people get wrong**
#
# - **"The decoder's first layer gets the encoder's first layer."** All decoder layers look at the *same* memory, that
#   of the last encoder layer.
# - **"The encoder's last vector sums the sentence up."** That was so before attention. The memory is one vector for
#   every token, and cross-attention chooses among them at each step.
# - **"Cross-attention sees the target's future, it has no causal mask."** Its keys are the source, all of which is
#   known. Each target position asks for itself alone.
# - **"Encoder and decoder were swapped, and it still trained."** It did: the shapes fit. In keras.io's translation
#   example the two inputs stood in the wrong order, and its answers repeated the input (keras-team/keras-io, issues
#   1968 and 1997). Give source and target different lengths in tests, and look at what it writes.

# %% [markdown]
# # 7 · Masks for sequence-to-sequence
#
# **Question.** A batch is a rectangle, sentences are not; and in training the decoder holds the very answer it is to give. What must be
# hidden from whom, and how does one *prove* that nothing leaks?
#
# **Predict.** A source of 3 words stands in a batch beside one of 30. By how much do its scores change, compared with being alone? `"not
# at all"`, `"a little"`, or `"a lot"`?

# %%
my_guess_padding = ...

# %% [markdown]
# **Maths.** With $M_{ij}$ true where query $i$ may look at key $j$, and $s_{ij}$ the scores of chapter 1:
#
# $$w_{ij} = \frac{M_{ij}\, e^{s_{ij}}}{\sum_{j'} M_{ij'}\, e^{s_{ij'}}} \qquad
#   M^{\text{padding}}_{ij} = [\,\text{key } j \text{ is no padding}\,] \qquad M^{\text{causal}}_{ij} = [\,j \le i\,]$$
#
# | symbol | meaning |
# |---|---|
# | $i$, $j$ | number of the query (who looks), of the key (what is looked at) |
# | $M_{ij}$ | 1 where $i$ may look at $j$, else 0: in code `True` and `False` |
# | $[\dots]$ | 1 if so, else 0 |
# | $w_{ij}$ | weight; exactly 0 where hidden, and the rest still sums to 1 |
#
# **A mask belongs to the keys.** It is made of the ids of those who are looked *at*: so cross-attention takes the source's padding.

# %%
source_of(padding_mask, causal_mask)

# %% [markdown]
# **Picture.** A real batch of two pairs, one short and one long, and all its masks. Rows look at columns.

# %%
pairs = [("ein Hund rennt", "a dog"), ("ein großer Hund schläft tief", "a big dog sleeps")]
words, named = architecture.words_batch(pairs)
mask_pictures.batch_masks(words, [named(row) for row in words.src], [named(row) for row in words.tgt_in])

# %% [markdown]
# Three things to see.
#
# - Grey *columns*, never grey rows: padding is not looked at. Padded *queries* (grey names) do look, and what they
#   compute is read by nobody. Hiding them, too, would make rows that may look nowhere: 0/0.
# - The decoder needs no padding mask: padding stands on the right, so it lies in every real token's future.
# - The maps of cross-attention are no squares. A test whose source and target are equally long cannot tell its axes
#   apart.
#
# **Naive version**, and **equality** with the shipped functions and with both of torch's dialects:


# %%
def naive_masks(src, tgt_in):
    padding = [[token != PAD for token in row] for row in src.tolist()]
    causal = [[key <= query for key in range(tgt_in.size(1))] for query in range(tgt_in.size(1))]
    return torch.tensor(padding), torch.tensor(causal)


real, past = naive_masks(words.src, words.tgt_in)
assert torch.equal(real, padding_mask(words.src, PAD)[:, 0, 0]) and torch.equal(past, causal_mask(5))

# %%
attend = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
x = torch.randn(2, words.src.size(1), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
additive = torch.zeros(real.shape, dtype=x.dtype).masked_fill(~real, -torch.inf)
with torch.no_grad():
    as_words = attend(x, x, x, key_padding_mask=~real)[0]  # True: hidden
    as_numbers = attend(x, x, x, key_padding_mask=additive)[0]  # added to the scores
    unmasked = attend(x, x, x)[0]
assert torch.allclose(as_words, as_numbers, atol=1e-12) and not torch.allclose(as_words, unmasked, atol=1e-3)

# %% [markdown]
# | where | type | may look | hidden |
# |---|---|---|---|
# | here; `F.scaled_dot_product_attention(attn_mask=)` | bool | `True` | `False` |
# | `nn.MultiheadAttention(key_padding_mask=, attn_mask=)`, `nn.Transformer(tgt_mask=, ...)` | bool | `False` | `True` |
# | all of them | float, added to scores | $0$ | $-\infty$ |
#
# The same word, `mask`, with opposite meanings, within one library. Invert at the border, once, and name things by what `True` says:
# `may_look`, `is_padding`.
#
# **Experiment: three laws.** Masks are either right or wrong, so there is no need of training to see it. The whole network with random
# weights, in float64:
#
# 1. **Padding changes nothing.** Six more tokens of padding on every source.
# 2. **Batch-mates and their order change nothing.** Rows moved around; each row alone.
# 3. **The future has no gradient.** The derivative of the scores at position $i$ by the input at $j > i$ is not small:
#    it is 0.

# %%
found = architecture.laws()
ledger.settle("architecture-padding-changes-nothing", found)

# %%
ledger.settle("architecture-batch-order-changes-nothing", found)

# %%
assert found.future_gradient == 0  # exactly
assert bool((found.by_future.tril() > 0).sum() == 6 * 7 // 2)  # and the past matters, all of it
assert found.by_mates < 1e-12
print(f"each row alone: {found.by_mates:.0e} apart" + guessed(my_guess_padding))
print(found.by_future.numpy().round(1))

# %% [markdown]
# Rows are scores, columns are inputs, each number is the length of the gradient of the sum of the squared scores of that row; above the
# diagonal stand true zeros. (Padding is
# "nothing" up to rounding, for sums of another length are added up in another order. Zero times anything is exact, so the future is
# nothing at all.)
#
# What happens *without* each mask is told in [masks](masks.ipynb): without the causal one, training looks like a triumph, and the network
# cannot write a sentence.
#
# **Exercises.**
#
# **1.** Our mask in (`True`: may look), numbers to add to the scores out.


# %%
def my_additive_mask(may_look): ...


check("architecture-additive-mask", my_additive_mask)

# %% [markdown]
# **2.** Two pairs; sources of 7 and 4 tokens, targets of 3 and 5, as they stand in the tensors, begin and end included; 4 heads. What is the shape of the weights of cross-attention, as
# (batch, heads, ?, ?)?

# %%
my_shape = ...
check("architecture-cross-shape", my_shape)

# %%
hint("architecture-cross-shape")

# %%
solution("architecture-additive-mask")

# %% [markdown]
# Four more, one of them with a wrong mask to be found among six, are in [masks](masks.ipynb).
#
# **Paper against code**
#
# | section 3.2.3 | here |
# |---|---|
# | illegal connections are set to $-\infty$ before the softmax | the same |
# | silent on padding | `padding_mask`, made once, in `Transformer.encode` |
# | the causal mask as a matrix | the kernel's own `is_causal`; `causal_mask` is its definition |
# | silent on padding of the target | none needed: it stands on the right; the loss leaves it out (chapter 8) |
#
# **What people get wrong**
#
# - **"The target's padding mask goes into cross-attention."** Its keys are the source's. It has been shipped the other
#   way (hyunwoongko/transformer#11); where both sides are equally long nothing complains.
# - **"A large negative number is as good as $-\infty$."** Until a row has nothing to look at: then it quietly averages
#   over exactly what was hidden.
# - **"Zero the weights after the softmax."** The hidden keys are then still in the denominator, and rows no longer sum
#   to 1.
# - **"Batch size cannot matter in evaluation."** Without a padding mask it does, and scores change with the
#   company a sentence keeps.

# %% [markdown]
# # 8 · Training
#
# **Question.** A model that maps a source and the beginning of an answer to the next token: how does it learn from pairs? Short answer:
# at every position it is told the source and all right tokens *before* the one it has to name, at all positions at once. The recipe
# around that (how fast, how smooth, how averaged) has a notebook of its own, with an experiment for each part: [training_recipe](training_recipe.ipynb).

# %%
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

import transduce
from transduce.config.settings import load_config
from transduce.data.batches import collate
from transduce.data.datasets import load_split
from transduce.evaluation.evaluate import score
from transduce.inference.attention_maps import record_attention
from transduce.inference.config import DecodingConfig
from transduce.inference.search import length_norm_of
from transduce.learn import FAST, Ledger, check, source_of
from transduce.learn.experiments import batches, decoding, recipe
from transduce.learn.pictures import decoding as decoding_pictures
from transduce.learn.showing import Shown
from transduce.learn.tasks import BOS, EOS, PAD
from transduce.runs.corpus import Corpus
from transduce.training.loss import cross_entropy_sum
from transduce.training.optim import inverse_sqrt_rate
from transduce.training.step import TrainStep

# %% [markdown]
# ## Teacher forcing and the shift
#
# **Maths.** The probability of an answer $y_1 \dots y_T$ to a source $x$ is a product, so its logarithm is a sum:
#
# $$\log p(y \mid x) = \sum_{t=1}^{T} \log p(y_t \mid y_1 \dots y_{t-1}, x)$$
#
# | symbol | meaning |
# |---|---|
# | $x$, $y$ | source and target, as ids |
# | $y_T$ | the end symbol: where to stop is learnt like any token |
# | $T$ | tokens of the target, its end included |
#
# Training makes this sum large. **Teacher forcing**: the tokens *before* position $t$ are the right ones, whatever the model would have
# written. So all positions are computed in one pass, and the causal mask (chapter 7) keeps each from seeing what it has to name. What
# goes *in* is therefore the target moved right by one place, with a begin symbol in front. In the package this shift is made in one place
# only:

# %%
data = recipe.words(1_500, 60)
batch = collate(data.train, [0, 700, 1_400])
for name in ("tgt_in", "tgt_out"):
    print(name)
    for row in getattr(batch, name).tolist():
        print("  ", row, " ".join(data.tokenizer.target_tokens(row)))

# %% [markdown]
# Read a column: the token in `tgt_in` is what the model knows last, the token below it in `tgt_out` is what it has to name. Padding is 0,
# begin is 1, end is 2. In a batch each row of `tgt_out` is padded at its end, and padding counts for nothing.
#
# **Predict.** Suppose somebody forgets the shift, and gives `tgt_out` as the input as well. What will the training loss be after a few
# hundred steps, and what share of answers will the model write correctly? Write your guess down, then run.

# %%
my_loss_guess, my_share_guess = ..., ...

# %%
unshifted = decoding.without_shift()
print(
    f"shift forgotten: loss {unshifted.unshifted.losses[-1]:.3f}, answers right {unshifted.own:.0%}"
    + guessed(my_loss_guess, my_share_guess)
)
decoding_pictures.unshifted(unshifted)

# %%
ledger.settle("unshifted-targets-look-perfect", unshifted)

# %% [markdown]
# The lower curve is the broken model. It has learnt to copy its input, the answer, and when it writes for itself there is no answer to
# copy. It is easily overlooked, because everything that is logged looks wonderful. The test that finds it costs a minute: **let the model write, and look.**


# %%
def my_shift(target_ids):
    """(what goes in, what is asked for), of a target without begin (1) and end (2)."""
    ...


check("training-shift", my_shift)

# %% [markdown]
# ## The loss, smoothed
#
# **Maths.** With $V$ tokens, and $q$ the distribution that is asked for at one position, the loss of this position is $-\sum_{i=1}^{V}
# q_i \log p_i$. Label smoothing of $\varepsilon$ (section 5.4, $\varepsilon = 0.1$) asks for a little of everything: $q_i = (1 -
# \varepsilon)\,[i = y_t] + \varepsilon / V$.
#
# | symbol | meaning |
# |---|---|
# | $V$ | number of tokens that can be written |
# | $p_i$ | the probability that the model gives to token $i$ at this position |
# | $q_i$ | the one that is asked for; $[i = y_t]$ is 1 for the right token and 0 for all others |
# | $\varepsilon$ | how much of the whole is spread evenly |

# %%
decoding_pictures.smoothed_target(3, 0.1, 8)

# %% [markdown]
# **Naive version and equality.** The shipped loss never holds all logits at once; it is the same number as these three lines, and as torch's:

# %%
random = torch.Generator().manual_seed(3)
hidden = torch.randn(2, 5, 7, generator=random, dtype=torch.float64)
weight = torch.randn(11, 7, generator=random, dtype=torch.float64)
targets = torch.tensor([[4, 9, 3, 2, 0], [5, 2, 0, 0, 0]])
log_p = (hidden @ weight.T).log_softmax(dim=-1)
q = 0.9 * F.one_hot(targets, 11) + 0.1 / 11
naive = -(q * log_p).sum(dim=-1)[targets != 0].sum()

shipped, count = cross_entropy_sum(hidden, weight, targets, pad_id=0, label_smoothing=0.1)
torchs = F.cross_entropy(log_p.flatten(0, 1), targets.flatten(), ignore_index=0, label_smoothing=0.1, reduction="sum")
assert torch.allclose(shipped, naive, atol=1e-10) and torch.allclose(shipped, torchs, atol=1e-10)
print(f"sum {float(shipped):.6f} over {int(count)} real tokens; mean {float(shipped / count):.4f}")

# %% [markdown]
# A sum *and* a count, not a mean: who divides, and by what, matters as soon as a step has several batches
# ([training_recipe](training_recipe.ipynb) measures by how much).


# %%
def my_smoothed_target(right, label_smoothing, num_ids):
    """The probabilities asked for, as a list of num_ids numbers."""
    ...


check("training-smoothed-target", my_smoothed_target)

# %% [markdown]
# ## The learning rate of equation 3
#
# $$lrate = d_{model}^{-0.5} \cdot \min(step^{-0.5},\; step \cdot warmup^{-1.5})$$
#
# It rises in a straight line for `warmup` steps and then falls as $1/\sqrt{step}$. The two terms are equal at `step = warmup`: that is
# the peak, $(d_{model} \cdot warmup)^{-0.5}$. For the base model that is 7·10⁻⁴. ($step$ counts updates from 1, $warmup$ is 4,000 in the
# paper.)

# %%
assert math.isclose(inverse_sqrt_rate(4000, 512, 4000), (512 * 4000) ** -0.5)
decoding_pictures.schedules()


# %%
def my_rate(step, d_model, warmup_steps): ...


check("training-rate", my_rate)

# %% [markdown]
# ## Batches by tokens
#
# A batch is a rectangle, and its short rows are filled up with padding that is computed for nothing. The paper puts pairs of like length
# together and counts a batch in tokens (section 5.1). How much does that save, for words of English and their phonemes? **Predict** the
# share of padding if every pair is padded to the longest one of the corpus.

# %%
my_padding_guess = ...

# %%
found = batches.batching()
print(f"padded to the longest: {found.fixed:.0%} padding{guessed(my_padding_guess)}")
print(f"{found.num_pairs:,} pairs, in batches of {min(found.batch_sizes)} to {max(found.batch_sizes)} pairs")
decoding_pictures.padding(found)

# %%
ledger.settle("fixed-length-computes-padding", found)

# %%
ledger.settle("buckets-compute-tokens", found)

# %% [markdown]
# ## One update
#
# Everything that changes weights is in one class. This is how it learns from a batch and how it updates, as installed:

# %%
source_of(TrainStep._accumulate_gradients, TrainStep._update)

# %% [markdown]
# **Paper against code.** Adam's betas and epsilon, the schedule, smoothing and dropout are the paper's by default. The shipped loss
# ranges over the ids that occur in targets, the paper's over the joint vocabulary. Batches are bounded by pairs times the longest side,
# padding included. Gradient clipping and a moving average of the weights are ours, and off by default; the paper averages its last 5
# checkpoints (20 for the big model, section 6.1).
#
# **What people get wrong.** *"The loss is low, so it works."* You have just seen a loss of nearly zero that did not. *"Accuracy during
# training is the accuracy of the model."* That is the next chapter.
#
# # 9 · Decoding
#
# **Question.** The model gives probabilities of the next token. How do they become an answer, and is it the best one?
#
# ## It has to live with what it wrote
#
# You stand on a ring of six places and are given moves: left, right, right, ... Write where you are after each. One mistake, and every
# later place is wrong too. But a model that is *told* the right place before each move needs that one move to name the next.
#
# **Predict.** If it names most tokens rightly when it is told those before: what share of whole answers does it write without a slip?

# %%
my_guess = ...  # a share, such as 0.5

# %%
own = decoding.own_writing()
decoding_pictures.own_writing(own, None if my_guess is ... else my_guess)

# %%
ledger.settle("told-tokens-are-not-own-tokens", own)

# %% [markdown]
# So **teacher-forced accuracy is not a score.** It answers "how good is the next token, after a perfect beginning?", and there is no
# perfect beginning when the model writes. BLEU of teacher-forced tokens is a number of something else, too
# ([real_translation](real_translation.ipynb) has both).

# %%
my_share = ...  # 40 tokens, each right with probability 0.98, independently: share of answers without a slip
check("decoding-no-slip", my_share)

# %% [markdown]
# ## All the answers there are
#
# The likeliest answer is the one with the largest product of probabilities. To take the likeliest *token* at each step, **greedy
# search**, need not find it: a good first token may lead nowhere good. On a vocabulary of three symbols and answers of at most five, we
# can simply score all 364 of them. The model below was shown, for each of its sources, eight right answers of different probabilities.

# %%
searched = decoding.searches()
source = searched.sources[5]
every = decoding.all_answers(decoding.SEARCH_SYMBOLS, decoding.SEARCH_LONGEST)
ranked = decoding.score_all(searched.model, source, every)
print(f"{len(every)} answers have {sum(math.exp(answer.log_prob) for answer in ranked):.1%} of the probability")
for answer in ranked[:4]:
    print(f"{decoding_pictures.symbols(answer.ids):12} {math.exp(answer.log_prob):.3f}")

# %% [markdown]
# **Beam search** keeps the best few beginnings instead of one. **Naive version**, a full pass of the network for each token:


# %%
@torch.no_grad()
def naive_beam(model, source, beam_size, longest):
    beam, ended = [(0.0, [])], []
    for _ in range(longest):
        tgt_in = torch.tensor([[BOS, *ids] for _, ids in beam])
        hidden = model(torch.tensor([source] * len(beam)), tgt_in)
        log_probs = model.logits(hidden[:, -1]).log_softmax(dim=-1).tolist()
        longer = [(so_far + row[i], [*ids, i]) for (so_far, ids), row in zip(beam, log_probs, strict=True)
                  for i in range(len(row)) if i not in (PAD, BOS)]  # fmt: skip
        best = sorted(longer, reverse=True)
        ended += [found for found in best[:beam_size] if found[1][-1] == EOS]
        beam = [found for found in best if found[1][-1] != EOS][:beam_size]
        if len(ended) >= beam_size:
            break
    return max(ended[:beam_size])


# %% [markdown]
# **Equality** with the shipped search, which keeps keys and values (chapter 6) and computes one new token at each step:

# %%
for beam_size in (1, 2, 4):
    fast_ones = decoding.search(searched.model, searched.sources[:6], beam_size=beam_size, most_tokens=12)
    for one, hypothesis in zip(searched.sources[:6], fast_ones, strict=True):
        log_prob, ids = naive_beam(searched.model, one, beam_size, 12)
        assert ids[:-1] == hypothesis.ids and abs(log_prob - hypothesis.log_prob) < 1e-4
print("the same answers, with the same log-probabilities")

# %% [markdown]
# We can list all 364 answers, so we know the best one. How often does each search miss it? A miss is a **search error**: the model thinks better of another answer. (A *model*
# error is an answer that is likely and wrong; no search mends that.) **Predict** for how many sources greedy search misses.

# %%
my_guess = ...

# %%
print(f"greedy search misses {searched.greedy_misses:.0%} of {len(searched.sources)}{guessed(my_guess)}")
decoding_pictures.search_errors(searched)

# %%
ledger.settle("greedy-search-misses", searched)

# %%
ledger.settle("beam-search-seldom-misses", searched)


# %%
def my_beam(next_log_probs, beam_size, longest):
    """next_log_probs(ids) gives {token: log-probability}; 2 is the end. Returns the likeliest ids, without the end;
    longest: tokens at most, the end included."""
    ...


check("decoding-beam", my_beam)

# %% [markdown]
# ## Drawing instead of searching
#
# **Sampling** draws each token by its probability. Many draws give back the model's own distribution; a temperature below 1 sharpens it,
# above 1 flattens it. Greedy search is the limit at 0.

# %%
drawn = decoding.draws(searched.model, source, number=2_000, most_tokens=12, temperature=1.0)
name = decoding_pictures.symbols(source)
decoding_pictures.answers(ranked, drawn, searched.in_training[5], f"“{name}”", most=10)

# %% [markdown]
# ## The likeliest answer can be no answer
#
# Each further token multiplies by a number below 1, so probability favours short answers. Take copies in which each symbol may be written
# in two ways (65 % and 35 %), and data with a fault that real data have: one target in twenty is missing. The likeliest full answer to 12
# symbols has $0.95 \cdot 0.65^{12}$, about half a per cent. The empty one has five. **Predict**: will a wider beam answer better or
# worse?

# %%
my_guess = ...

# %%
by_length = decoding.lengths()
print(f"right with beams of {by_length.beam_sizes}: {by_length.right[0.0]}{guessed(my_guess)}")
decoding_pictures.lengths(by_length)

# %%
ledger.settle("the-likeliest-answer-can-be-empty", by_length)

# %% [markdown]
# The search did nothing wrong: it found what is likeliest, and what is likeliest is no answer. Greedy search was saved by not seeing that
# far. This is why scores are **divided by a norm of the length** (the panel on the right divides by the length itself). The shipped default is that of Wu et al. (2016) with $\alpha = 0.6$, as
# in section 6.1 of the paper: $((5 + length)/6)^\alpha$.

# %%
config = DecodingConfig()  # length_penalty = 0.6, length_norm = "wu"
print("an answer of 1, 7, 13 tokens is divided by", length_norm_of(torch.tensor([1.0, 7.0, 13.0]), config).tolist())


# %%
def my_score(log_prob, length, alpha):
    """The log-probability divided by ((5 + length) / 6)^alpha; length counts the end symbol."""
    ...


check("decoding-length-score", my_score)

# %% [markdown]
# **Paper against code.** Beam and alpha can be set for each call; the paper's were 4 and 0.6, ours are 5 and 0.6. Our search stops with as
# many answers as the beam is wide, or earlier when nothing left can still win. The paper allows input length + 50 tokens, we allow
# 2 × input + 20.
#
# **What people get wrong.** *"Beam search finds the best answer."* Likelier, mostly; that is no promise of better. *"A wider beam cannot
# do harm."* It just did.
#
# # 10 · Why it matters
#
# Three reasons made the Transformer the basis of almost everything since. Each is a question with an experiment in
# [why_it_matters](why_it_matters.ipynb); here is one screen each.
#
# **Parallelisation.** A recurrent network computes position $t$ after position $t - 1$: $T$ steps in a row, however many processors there
# are. Attention computes all positions of a layer at once, at the price of $T^2$ pairs. Whether that is *faster* depends on length, width
# and machine.
#
# **Long-range dependencies.** To bring something from position 1 to position $T$, a recurrent network must carry it through $T$ updates,
# and the gradient back through as many. In attention the way is one step for any distance. The question is what is still recalled after
# many distractors.
#
# **Quality.** The paper reports 28.4 BLEU (English to German) with a fraction of the training cost of what was best before. On small data
# and two cores nobody can repeat that; the notebook says what can be.
#
# The numbers below are the ledger's, measured on the machine that is named; [why_it_matters](why_it_matters.ipynb) measures on yours.

# %%
rows = [claim for claim in ledger.claims.values() if claim.experiment.startswith(("why.", "why_quality."))]
said = [
    f"- {claim.said(claim.measured)}" if claim.measured is not None else f"- `{claim.name}`: not measured yet"
    for claim in rows
]
said.append(f"\nMeasured on {rows[0].measured_on}.")
Shown("\n".join(said) or "not measured yet", markdown="\n".join(said) or "not measured yet")

# %% [markdown]
# **What people get wrong.** *"Table 1 proves it is faster."* It counts operations; time on the clock depends on what a machine does with
# them. *"Attention has no limits on length."* Positions beyond those seen in training are unknown to it
# ([positions](positions.ipynb)).
#
# # 11 · Your own model, on a real task
#
# **Question.** How is an English word pronounced? *Tough, though, through*: no rule gets it right, and no model can be sure. The Carnegie
# Mellon dictionary has some 135,000 entries, of which 125,000 are for training; we learn from it, with the toolkit as it ships, for some three minutes on two cores.

# %%
pairs = {split: load_split("cmudict", split) for split in ("train", "valid", "test")}
for word, phonemes in list(zip(pairs["train"].src, pairs["train"].tgt, strict=True))[40_000:40_004]:
    print(f"{word:14} {phonemes}")
print({split: len(of_split) for split, of_split in pairs.items()})

# %% [markdown]
# These are all the settings: what `transduce train CONFIG.toml` takes. What is not said has its default, the paper's where it speaks.
# Departures: pre-norm and rotary positions (they train faster at this size), a linear schedule with a short warm-up, clipped gradients, no
# dropout, separate vocabularies, and a moving average of the weights (the paper averages checkpoints, section 6.1).

# %%
SETTINGS = """
[data]
dataset = "cmudict"

[tokenizer]
source = "characters"      # t r a n s d u c e
target = "words"           # T R AE N Z D UW S
joint = false

[model]
d_model = 128
d_ff = 256
num_heads = 4
num_encoder_layers = 3
num_decoder_layers = 3
dropout = 0.0              # each word is seen about once: nothing to guard against
norm_first = true
positions = "rotary"

[optim]
schedule = "linear"
learning_rate = 0.002
warmup_steps = 100
max_grad_norm = 1.0
ema_decay = 0.99

[training]
steps = 2800
batch_tokens = 512
validate_every = 700

[validation]
metrics = ["word_error", "per"]   # per cent of words, and of phonemes, that are wrong
group_sources = true       # a word with several pronunciations is right with any of them
max_pairs = 150
"""
quick = ["--training.steps", "60", "--training.validate_every", "30", "--model.d_model", "32", "--model.d_ff", "64"]
settings = load_config(SETTINGS, "the cell above", quick if FAST else [])

# %% [markdown]
# **Predict.** What share of words that it has never seen will it get entirely right?

# %%
my_guess = ...  # per cent

# %%
few = (
    {"train": 3_000, "valid": 100, "test": 100} if FAST else {split: len(of_split) for split, of_split in pairs.items()}
)
some = {split: replace(p, src=p.src[: few[split]], tgt=p.tgt[: few[split]]) for split, p in pairs.items()}


def tell(row):
    if "word_error" in row:
        print(f"step {row['step']:5,}: {row['loss']:.2f} nats per phoneme, {row['word_error']:.0f} % of words wrong")


with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "run"
    transduce.train(settings, run, corpus=Corpus(some["train"], some["valid"]), observers=[tell])
    predictor = transduce.load(run)
    print("the run folder:", ", ".join(sorted(path.name for path in run.iterdir())))

# %% [markdown]
# **An honest score** is measured on words that were in no part of training, on what the model writes by itself, and comes with an
# interval: with other test words it might have been anything in it.

# %%
word_errors, phoneme_errors = score(
    predictor, some["test"].src, [some["test"].tgt], ("word_error", "per"), group_sources=True
)
print(word_errors, "% of", word_errors.num_segments, "words", "\n" + str(phoneme_errors), "% of phonemes")
print(f"words right: {100 - word_errors.value:.1f} %{guessed(my_guess)}")

# %% [markdown]
# Words that are not in the Carnegie Mellon dictionary, each with the three best answers of a beam of five and their log-probabilities after normalisation:

# %%
NEW_WORDS = ["transduce", "blorptastic", "snizzlewick", "grokking", "vaswanian"]
for word, answers in zip(NEW_WORDS, predictor.predict_n_best(NEW_WORDS, 3), strict=True):
    print(f"{word:12}", "   ".join(f"{answer.text} ({answer.score:.2f})" for answer in answers))

# %% [markdown]
# Where did it look? The weights of cross-attention in the last layer, averaged over its heads, while it writes. They say where the model
# *looked*; they do not explain why it answered so ([looking_inside](looking_inside.ipynb)).

# %%
word = "transduce"
src = predictor.tokenizer.encode_source([word])[0]
tgt = predictor.tokenizer.encode_target(predictor.predict([word]))[0]
with torch.inference_mode(), record_attention(predictor.model, "cross_attention") as recorded:
    predictor.model(torch.tensor([src]), torch.tensor([[predictor.tokenizer.bos_id, *tgt[:-1]]]))
weights = list(recorded.values())[-1][0].mean(dim=0).numpy()
letters, phonemes = predictor.tokenizer.source_tokens(src), predictor.tokenizer.target_tokens(tgt)
decoding_pictures.alignment(weights, source=letters, target=phonemes)

# %% [markdown]
# ## Your own pairs
#
# The same for any text in, text out: one pair a line, source TAB target. `fit` needs no settings; it holds out its own test part.
#
# ```sh
# transduce fit pairs.tsv --minutes 15                    # learns, and says how good it is
# transduce fit pairs.tsv --minutes 15 --resume           # goes on after an interruption, to the same bits
# echo "a line" | transduce predict runs/pairs            # --n-best 3, --json, --require TEXT, ...
# transduce explain runs/pairs "a line" -o page.html      # attention, probabilities and the search, as a page
# transduce compare runs/a runs/b --source test.src --target test.tgt
# transduce export runs/pairs --format onnx -o exported   # or ctranslate2, huggingface: certified to answer the same
# ```
#
# In Python: `transduce.fit(["pairs.tsv"], Path("runs/mine"), minutes=15)`, then `transduce.load("runs/mine").predict(["a line"])`.
#
# # What you now know
#
# - Attention is a look-up by similarity; its heads look for different things; positions must be told to it (chapters
#   1 to 3).
# - A layer is attention, then a network for each position alone, each added to what was there and normalised (4, 5).
# - The encoder reads all at once, the decoder writes from left to right, and masks are what makes the difference (6,
#   7).
# - Training tells the model every right token before the one it has to name; when it writes, it has only its own. What
#   is logged in training is not what you get (8, 9).
#
# # What to read next
#
# The paper again: [arXiv 1706.03762](https://arxiv.org/abs/1706.03762), with `docs/PAPER.md` beside it. Then the other notebooks:
# [training_recipe](training_recipe.ipynb), [why_it_matters](why_it_matters.ipynb), [real_translation](real_translation.ipynb),
# [looking_inside](looking_inside.ipynb), [break_it](break_it.ipynb); and `src/transduce/model/`, which is short.
#
# # Further exercises
#
# 1. Train chapter 11 with `num_heads = 1`, then with `d_ff = 32`. Which hurts more? Compare the intervals, not the
#    numbers.
# 2. Learn the other way: phonemes to letters. Which direction is harder, and why?
# 3. Make pairs of dates ("3 March 2024", "2024-03-03") and `fit` them. How many do you need until none of 1,000 new
#    ones is wrong?
# 4. Take the model of chapter 11 and find the words that it is surest of and gets wrong. What do they have in common?

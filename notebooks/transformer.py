# %% [markdown]
# # The Transformer, by running, breaking and measuring it
#
# This notebook goes through the encoder-decoder Transformer of [*Attention Is All You Need*](https://arxiv.org/abs/1706.03762) (Vaswani
# et al. 2017), box by box, with the code that this package trains and ships. At its end you train a model of your own.
#
# **How to read it.** Two or three hours, from top to bottom. Each chapter asks a question, and asks *you* for a guess before it answers:
# replace `...` by what you expect, then run. Then come the maths, ten naive lines, the installed source (never a copy of it) and a proof
# that both compute the same, a picture, an experiment with a number, and exercises with hints and a checker.
#
# **What you need.** Python, a little PyTorch (tensors, `@`, autograd), and what a softmax is. No GPU, no network.
#
# **The numbers.** Every claim stands in a ledger (`claims.toml`) with what was expected *before* it was measured. Boxes that begin with
# *Measured* come from this very run; the command in them repeats one experiment alone. What did not come out as hoped is said as plainly.
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

from transduce.learn import Ledger, check, source_of
from transduce.learn.experiments import attention as attention_experiments
from transduce.learn.experiments import feed_forward as feed_forward_experiments
from transduce.learn.explained import explained
from transduce.learn.pictures import flagship as pictures
from transduce.learn.tracing import SENTENCE, live_shapes, sentence_reverser, trace
from transduce.model import MultiHeadAttention, attention
from transduce.model.feed_forward import FeedForward
from transduce.model.positional import SinusoidalPositions
from transduce.predictor import Predictor

ledger = Ledger.load()


def guessed(guess):
    return "" if guess is ... else f"   (you guessed {guess})"


# %% [markdown]
# # 0 · Orientation: Figure 1, alive
#
# A Transformer turns one sequence into another. The **encoder** reads the source, all of it at once; the **decoder** writes the target,
# one token after the other, looking at the encoder's output and at what it has written so far.
#
# So that everything below has something to look at, we first train a small one, with the real tokenizer, on a task where one can see what
# is right: *write the words of a sentence in reverse order*. It takes some fifteen seconds.

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
pictures.figure_1(shapes)

# %% [markdown]
# Two things to notice now, both explained later. **No box changes the shape**: (3, tokens, 64) goes in and comes out, which is what lets
# layers be stacked and added. And **only attention mixes tokens**: every other box does the same to each token by itself.
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
# The whole of it, to step through: arrow keys move from token to token, a click on a thumbnail enlarges a head. (Without a browser:
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
# dictionary that is soft: every key matches a little, and what comes back is a mixture of all values, by how well their keys match. Soft,
# so that it has a derivative, and what to ask and what to answer can be learned.
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
# *sees* of the result.

# %%
words = ["the", "dog", "sees", "a", "cat"]
pictures.linked_matrices(q, k, weights, v, mixed, queries=words, keys=words)

# %% [markdown]
# **Experiment.** Why the $\sqrt{d_k}$? A product of two random vectors of $d_k$ numbers has variance $d_k$: the wider, the larger the
# scores, and the softmax of large numbers is nearly all on one key. There it has no slope: whatever the other keys do changes nothing, so
# nothing is learned.

# %%
saturated = attention_experiments.saturation()
print(f"largest weight at d_k = 256, without the root: {saturated.unscaled_largest:.2f}{guessed(my_largest)}")
pictures.saturation(saturated)

# %%
ledger.settle("root-unscaled-softmax-saturates", saturated)

# %%
ledger.settle("root-saturated-softmax-hands-back-little", saturated)

# %% [markdown]
# That is at the start. Does it matter once a network *trains*? The same network, one head of $d_k = 128$, with the division and without:

# %%
root = attention_experiments.training_without_root()
curves = {"divided by √d_k": root.with_root[0].smoothed(), "not divided": root.without[0].smoothed()}
pictures.curves(curves, title="Turning symbols round, one head")

# %%
ledger.settle("root-training-without-it", root)

# %% [markdown]
# **Exercises.**


# %%
def my_attention(q, k, v): ...


check("attention-equation-1", my_attention)

# %%
# By hand: one query (1, 1, 0, 0); keys (1, 1, 0, 0) and (0, 0, 1, 1); values 10 and 0, one channel. What comes out?
my_number = ...
check("attention-by-hand", my_number)

# %% [markdown]
# `hint("attention-by-hand")` gives one hint after the other, `solution("attention-by-hand")` an answer.
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
# **Maths** (section 3.2.2):
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
pictures.shares(found.both, xlabel="places with both symbols right", chance=1 / found.num_symbols**2)

# %%
ledger.settle("heads-one-mean-is-not-two", found)

# %%
places = [f"{place}" for place in range(1, found.maps["4 heads"].size(1) + 1)]
pictures.head_maps({name: found.maps[name] for name in ("1 head", "4 heads")}, queries=places, keys=places)

# %% [markdown]
# Read the rows: a head that looks one to the left has its weights just below the diagonal, one that looks at the first symbol has them in
# the first column. The single head has to do both at once. (With a feed-forward network behind it, where it was tried, one head can undo
# some of the mixture; the bars show how much.)
#
# **Picture.** Every head of our trained reverser, where the decoder looks at the source:

# %%
cross = {f"layer {i + 1}": traced.attention[f"decoder.layers.{i}.cross_attention"] for i in range(2)}
pictures.head_maps(cross, queries=traced.written, keys=traced.source)

# %% [markdown]
# **Exercise.** How many parameters, biases included, has multi-head attention with $d_\text{model} = 512$ and 8 heads?

# %%
my_count = ...
check("heads-parameters", my_count)

# %% [markdown]
# **Paper against code.** The paper's projections have no biases in its formulas; ours have them, as in torch. Its code drops out
# attention weights; the paper does not say so, and we do not.
#
# **What people get wrong.** *"Eight heads cost eight times as much."* They share the channels: the same parameters, the same arithmetic.
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
pictures.positional_table(added)

# %% [markdown]
# Embeddings are multiplied by $\sqrt{d_\text{model}}$ before positions are added (section 3.4). **Everyone asks why; here it is
# measured.** The matrix is shared with the output, where it must be small for the first logits to be near zero: its rows are drawn with
# length 1. A row of the sinusoids has length $\sqrt{d/2}$. Without the factor, the symbol drowns in its position.

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
ledger.settle("embedding-one-matrix-two-jobs", scale)

# %% [markdown]
# What else there is to know about positions (order blindness as an exact law, learned and rotary positions, and whether the sinusoid
# reaches further than it was trained) has [a notebook of its own](positions.ipynb).


# %%
def my_entry(position, channel, d_model):
    """The number that is added to one channel at one position."""
    ...


check("positions-one-entry", my_entry)

# %% [markdown]
# **What people get wrong.** *"It is concatenated."* It is added. *"`x + pe` is enough."* If the sum is not assigned, positions are
# computed and thrown away; the loss still falls ([break it](break_it.ipynb)).
#
# # 4 · Feed-forward networks, position-wise
#
# **Question.** After attention has fetched, who *computes*? Attention only mixes values: whatever a head does is, for given weights, a
# linear map.
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
pictures.curves({name: run.smoothed() for name, run in alone.trainings.items()}, title="Sums of neighbours")

# %%
ledger.settle("ffn-attention-alone-computes-badly", alone)

# %% [markdown]
# **Exercise.** In an encoder layer with $d_{ff} = 4\,d_\text{model}$, which share of the weights (biases and norms not counted) is in the
# feed-forward network?

# %%
my_share = ...
check("ffn-share", my_share)

# %% [markdown]
# **What people get wrong.** *"Attention is all you need."* The title says so; most of the weights are not attention. *"It mixes
# positions."* It cannot: it never sees two of them at once.

# %% [markdown]
# # 5 · Layer normalisation and residual connections
#
# **Question.** Attention and the feed-forward network are each wrapped in the same four words: "Add & Norm". What does the addition do,
# what does the norm do, and does their order matter?
#
# Short answer: the addition leaves a way from the first layer to the last on which nothing is lost; the norm keeps the size of numbers
# known; and their order decides what a gradient meets on its way back.

# %%
import torch
import torch.nn.functional as F
from torch import nn

from transduce.learn import Ledger, check, hint, solution, source_of
from transduce.learn.experiments import norms
from transduce.learn.pictures import norms as norm_pictures
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
print(
    f"right {right[0]:.3f}, with d - 1 {bessel[0]:.3f}" + ("" if my_guess_first is ... else f"; you {my_guess_first}")
)
assert f"{right[0]:.3f} {bessel[0]:.3f}" == "1.732 1.500"

# %% [markdown]
# Now the whole wrapper, as installed, and by hand. Dropout (chapter 8) sits on the sub-layer's output, before the addition; here it is 0.

# %%
source_of(AddAndNorm)

# %%
sublayer = nn.Linear(8, 8).double()
for norm_first in (False, True):
    shipped = AddAndNorm(8, 0.0, "layer", norm_first).double()
    by_hand = x + sublayer(shipped.norm(x)) if norm_first else shipped.norm(x + sublayer(x))
    assert torch.allclose(shipped(x, sublayer), by_hand, atol=1e-12)

# %% [markdown]
# **One difference, followed to its end.** Under post-norm the sum itself is normalised, again and again: whatever leaves a layer has
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
# **Picture.** Bars: what each sub-layer of the untrained encoder adds. Line: the sum so far. It grows, about like the root of the number
# of terms, for vectors that have nothing to do with each other are nearly at right angles. So a late sub-layer changes the direction of
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
# **3.** The input of a pre-norm encoder of twelve layers, and what each sub-layer adds, are independent, with mean 0 and root mean square
# 1. What is the root mean square of the stream at the end?

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
# **Question.** All parts are on the table. How do they make a network that reads one sequence and writes another?
#
# | attention | queries from | keys and values from | may look at |
# |---|---|---|---|
# | encoder self-attention | source | source | the whole source |
# | decoder self-attention | target so far | target so far | what is already written |
# | cross-attention | target so far | **the encoder's output** (the *memory*) | the whole source |
#
# An encoder layer is self-attention and a feed-forward network, each in its Add & Norm; a decoder layer has cross-attention between the
# two. Here they are as installed. That is all of it:

# %%
from transduce.learn.experiments import architecture
from transduce.learn.pictures import flagship as pictures
from transduce.model.decoder import DecoderLayer
from transduce.model.encoder import EncoderLayer

source_of(EncoderLayer, DecoderLayer)

# %% [markdown]
# **Equality.** The whole network beside `torch.nn.Transformer`, with its weights copied, every weight moved away from where it starts, in
# float64, on a padded batch. (torch's class closes both stacks with one more norm by default, which the paper's post-norm network does
# not have: those are left out. With them it would be another network.)

# %%
beside = architecture.beside_torch()
print(f"with torch's closing norms left in, the difference would be {beside.with_torchs_closing_norm:.2g}")
ledger.settle("architecture-equals-torch", beside)

# %% [markdown]
# **The first test of any training code**: can it learn *one* batch by heart? If not, nothing else needs to be looked at. **Predict** the
# loss after 250 steps on the same 16 pairs (it starts near $\ln 13 \approx 2.6$).

# %%
my_guess = ...

# %%
heart = architecture.by_heart()
print(f"last loss: {heart.last_loss:.4f} nats a token{guessed(my_guess)}")
pictures.curves({"one batch": heart.training.losses}, title="One batch, learned by heart")

# %%
ledger.settle("architecture-learns-a-batch-by-heart", heart)

# %% [markdown]
# **Writing, one token at a time.** When it writes, the decoder need not compute again what it has computed: keys and values of earlier
# tokens do not change, for no token sees a later one. They are kept (a *cache*), and a step computes one new token. Both ways must give
# the same scores:

# %%
ledger.settle("architecture-a-step-is-a-pass", architecture.steps())

# %% [markdown]
# **How large is it?** The paper's base model: $d = 512$, $d_{ff} = 2048$, 6 + 6 layers, 37,000 joint pieces $V$. **Predict** the number
# of parameters, then count by the formula:
#
# $$\underbrace{V d}_{\text{embeddings, shared}} + 6\,\underbrace{\big(4(d^2 + d) + (2\,d\,d_{ff} + d_{ff} + d) + 2 \cdot 2d\big)}_{\text{encoder layer}}
# + 6\,\underbrace{\big(8(d^2 + d) + (2\,d\,d_{ff} + d_{ff} + d) + 3 \cdot 2d\big)}_{\text{decoder layer}}$$

# %%
my_millions = ...

# %%
size = architecture.size()
d, d_ff, V = 512, 2048, 37_000
ffn = 2 * d * d_ff + d_ff + d
formula = V * d + 6 * (4 * (d * d + d) + ffn + 4 * d) + 6 * (8 * (d * d + d) + ffn + 6 * d)
assert formula == size.base
print(f"{formula:,}{guessed(my_millions)}")
pictures.shares({name: count / size.base for name, count in size.parts.items()}, xlabel="share of the parameters")

# %%
ledger.settle("architecture-size-of-base", size)

# %% [markdown]
# **Exercise.** How many parameters more would it have if the two embeddings and the output were three matrices instead of one?

# %%
my_difference = ...
check("architecture-untied", my_difference)

# %% [markdown]
# **What people get wrong.** *"The last encoder layer feeds the first decoder layer."* The encoder's final output goes to **every**
# decoder layer. *"The decoder gets the source as its input."* It only ever looks at it, by cross-attention.
#
# # 7 · Masks for sequence-to-sequence
#
# **Question.** In a batch, sentences have different lengths; in training, the decoder is handed the whole answer at once. What keeps
# padding from being read, and the future from being seen?
#
# **Maths.** A mask $M$ says who may look where; a forbidden score becomes $-\infty$ before the softmax, so its weight is exactly 0:
#
# $$\mathrm{weights}_{ij} = \frac{M_{ij}\, e^{s_{ij}}}{\sum_{j'} M_{ij'}\, e^{s_{ij'}}}$$
#
# | symbol | what it is |
# |---|---|
# | $s_{ij}$ | score of query $i$ and key $j$, as in equation 1 |
# | $M_{ij}$ | 1 (`True`) where query $i$ **may** look at key $j$ |
#
# | mask | where | what it hides |
# |---|---|---|
# | padding | encoder self-attention **and** cross-attention | padding of the *source*: a mask belongs to the keys |
# | causal | decoder self-attention | everything to the right of the query |
# | (target padding) | nowhere | not needed: it stands to the right, where the causal mask hides it, and the loss skips it |

# %%
from transduce.learn.pictures.mask_maps import mask_maps
from transduce.model import causal_mask, padding_mask

pairs = [("ein Hund", "a dog"), ("ein großer Hund rennt", "a big dog runs")]
batch, names = architecture.words_batch(pairs)
seen = padding_mask(batch.src, 0)[0, 0]
source_words, target_words = names(batch.src[0]), names(batch.tgt_in[0])
mask_maps([
    ("encoder", seen.expand(len(source_words), -1), source_words, source_words),
    ("decoder, itself", causal_mask(len(target_words)), target_words, target_words),
    ("cross-attention", seen.expand(len(target_words), -1), target_words, source_words),
])  # fmt: skip

# %% [markdown]
# **Laws.** A mask is right if certain things *cannot* matter. These are tests that you can run on any network, trained or not:
#
# 1. more padding changes nothing; 2. who else is in the batch, and in which order, changes nothing;
# 3. the derivative of output $i$ by input $j$ is **exactly** 0 for $j > i$.

# %%
laws = architecture.laws()
assert laws.future_gradient == 0
print(
    f"largest change by padding {laws.by_padding:.1g}, by order {laws.by_order:.1g}, by other rows {laws.by_mates:.1g}"
)
mask_maps(
    [("does output (row) depend on input (column)?", laws.by_future > 0, list("123456"), list("123456"))], columns=1
)

# %%
ledger.settle("architecture-padding-changes-nothing", laws)

# %%
ledger.settle("architecture-batch-order-changes-nothing", laws)

# %% [markdown]
# **Conventions** are the most common source of wrong masks. Here `True` means *may look*, as in `F.scaled_dot_product_attention`. In
# `nn.Transformer`, `key_padding_mask` and boolean `attn_mask` are `True` where one may **not** look; additive masks hold 0 and $-\infty$.
# Pass one for the other and the network looks only at padding.
#
# What happens without each mask (a training loss near zero, and nonsense written), and six masks of which you find the wrong one:
# [masks](masks.ipynb).


# %%
def my_causal_mask(length):
    """True where a query (row) may look at a key (column)."""
    ...


check("masks-causal", my_causal_mask)

# %% [markdown]
# # 8 · Training
#
# **Question.** A model that maps a source and the beginning of an answer to the next token: how does it learn from pairs? Short answer:
# it is told every right token but the one it has to name, at all positions at once. The recipe around that (how fast, how smooth, how
# averaged) has a notebook of its own, with an experiment for each part: [training_recipe](training_recipe.ipynb).

# %%
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

import transduce
from transduce.corpus import Corpus, Surroundings
from transduce.data import collate
from transduce.datasets import load_split
from transduce.decoding import DecodingConfig, length_norm_of
from transduce.inspection import record_attention
from transduce.learn import FAST, Ledger, check, source_of
from transduce.learn.experiments import batches, decoding, recipe
from transduce.learn.pictures import decoding as decoding_pictures
from transduce.learn.showing import Shown
from transduce.learn.tasks import BOS, EOS, PAD
from transduce.loss import cross_entropy_sum
from transduce.optim import inverse_sqrt_rate
from transduce.scoring import score
from transduce.settings import load_config
from transduce.train_step import TrainStep

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
print(f"shift forgotten: loss {unshifted.unshifted.losses[-1]:.3f}, answers right {unshifted.own:.0%}")
print(f"your guess:      loss {my_loss_guess}, answers right {my_share_guess}")
decoding_pictures.unshifted(unshifted)

# %%
ledger.settle("unshifted-targets-look-perfect", unshifted)

# %% [markdown]
# The lower curve is the broken model. It has learnt to copy its input, the answer, and when it writes for itself there is no answer to
# copy. It is the single most common bug in training code, because everything that is logged looks wonderful. The test that finds it costs
# a minute: **let the model write, and look.**


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

# %%
decoding_pictures.smoothed_target(3, 0.1, 8)

# %% [markdown]
# **Naive version and equality.** The shipped loss never holds all logits at once; it is the same number as six lines, and as torch's:

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
# the peak, $(d_{model} \cdot warmup)^{-0.5}$. For the base model that is 7·10⁻⁴.

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
print(f"your guess: {my_padding_guess}; {found.num_pairs:,} pairs, batches of {min(found.batch_sizes)} to", end=" ")
print(f"{max(found.batch_sizes)} pairs")
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
source_of(TrainStep._learn_from, TrainStep._update)

# %% [markdown]
# **Paper against code.** Adam's betas and epsilon, the schedule, smoothing and dropout are the paper's by default. The shipped loss
# ranges over the ids that occur in targets, the paper's over the joint vocabulary. Batches are bounded by pairs times the longest side,
# padding included. Gradient clipping and a moving average of the weights are ours, and off by default.
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
# The task: steps to the right or left on a ring of six places; the answer is the places passed. Each is the one before, plus or minus
# one. Told the right place before, a model needs one sign to name the next. After a wrong turn of its own, all that follows is off.
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
# perfect beginning when the model writes. BLEU of teacher-forced tokens is worse still: it has been published as BLEU
# ([real_translation](real_translation.ipynb) measures how much it flatters).

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
# Beside the truth of all 364, what do searches miss? A miss is a **search error**: the model thinks better of another answer. (A *model*
# error is an answer that is likely and wrong; no search mends that.) **Predict** for how many sources greedy search misses.

# %%
my_guess = ...

# %%
decoding_pictures.search_errors(searched)

# %%
ledger.settle("greedy-search-misses", searched)

# %%
ledger.settle("beam-search-seldom-misses", searched)


# %%
def my_beam(next_log_probs, beam_size, longest):
    """next_log_probs(ids) gives {token: log-probability}; 2 is the end. Returns the likeliest ids, without the end."""
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
decoding_pictures.lengths(by_length)

# %%
ledger.settle("the-likeliest-answer-can-be-empty", by_length)

# %% [markdown]
# The search did nothing wrong: it found what is likeliest, and what is likeliest is no answer. Greedy search was saved by not seeing that
# far. This is why scores are **divided by a norm of the length**. The shipped default is that of Wu et al. (2016) with $\alpha = 0.6$, as
# in section 6.1 of the paper: $((5 + length)/6)^\alpha$.

# %%
config = DecodingConfig()  # length_penalty = 0.6, length_norm = "wu"
print("an answer of 1, 7, 13 tokens is divided by", length_norm_of(torch.tensor([1.0, 7.0, 13.0]), config).tolist())


# %%
def my_score(log_prob, length, alpha): ...


check("decoding-length-score", my_score)

# %% [markdown]
# **Paper against code.** Beam and alpha can be set for each call; the paper's were 4 and 0.6, ours are 5 and 0.6. Our search stops when
# nothing left can still win.
#
# **What people get wrong.** *"Beam search finds the best answer."* Likelier, mostly; that is no promise of better. *"A wider beam cannot
# do harm."* It just did.
#
# # 10 · Why it matters
#
# Three reasons made this network the one that everything since is built on. Each is a question with an experiment in
# [why_it_matters](why_it_matters.ipynb); here is one screen each.
#
# **Parallelisation.** A recurrent network computes position $t$ after position $t - 1$: $T$ steps in a row, however many processors there
# are. Attention computes all positions of a layer at once, at the price of $T^2$ pairs. Whether that is *faster* depends on length, width
# and machine; it is measured, on yours.
#
# **Long-range dependencies.** To bring something from position 1 to position $T$, a recurrent network must carry it through $T$ updates,
# and the gradient back through as many. In attention the way is one step for any distance. The question is what is still recalled after
# many distractors.
#
# **Quality.** The paper reports 28.4 BLEU (English to German) with a fraction of the training cost of what was best before. On small data
# and two cores nobody can repeat that; the notebook says what can be.

# %%
rows = [claim for claim in ledger.claims.values() if claim.experiment.startswith("why.")]
said = [
    f"- {claim.sentence.format(measured=claim.measured)}"
    if claim.measured is not None
    else f"- `{claim.name}`: not measured yet"
    for claim in rows
]
Shown("\n".join(said) or "not measured yet", markdown="\n".join(said) or "not measured yet")

# %% [markdown]
# **What people get wrong.** *"The complexity table proves it is faster."* It counts operations; an hour of clock time depends on what a
# machine does with them. *"Attention has no limits on length."* Positions beyond those seen in training are unknown to it
# ([positions](positions.ipynb)).
#
# # 11 · Your own model, on a real task
#
# **Question.** How is an English word pronounced? *Tough, though, through*: no rule gets it right, and no model can be sure. The Carnegie
# Mellon dictionary has 125,000 entries; we learn from it, with the toolkit as it ships, for some three minutes on two cores.

# %%
pairs = {split: load_split("cmudict", split) for split in ("train", "valid", "test")}
for word, phonemes in list(zip(pairs["train"].src, pairs["train"].tgt, strict=True))[40_000:40_004]:
    print(f"{word:14} {phonemes}")
print({split: len(of_split) for split, of_split in pairs.items()})

# %% [markdown]
# These are all the settings: what `transduce train CONFIG.toml` takes. What is not said has its default, the paper's where it speaks.
# Departures: pre-norm and rotary positions (they train faster at this size), and an average of the weights.

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
metrics = ["wer", "per"]   # per cent of words, and of phonemes, that are wrong
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
    if "wer" in row:
        print(f"step {row['step']:5,}: {row['loss']:.2f} nats per phoneme, {row['wer']:.0f} % of words wrong")


with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "run"
    transduce.train(
        settings, run, corpus=Corpus(some["train"], some["valid"]), surroundings=Surroundings(observers=(tell,))
    )
    predictor = transduce.load(run)
    print("the run folder:", ", ".join(sorted(path.name for path in run.iterdir())))

# %% [markdown]
# **An honest score** is measured on words that were in no part of training, on what the model writes by itself, and comes with an
# interval: with other test words it might have been anything in it.

# %%
word_errors, phoneme_errors = score(predictor, some["test"].src, [some["test"].tgt], ("wer", "per"), group_sources=True)
print(word_errors, "% of", word_errors.num_segments, "words", "\n" + str(phoneme_errors), "% of phonemes")
print(f"words right: {100 - word_errors.value:.1f} %; your guess: {my_guess}")

# %% [markdown]
# Words that are in no dictionary, each with the three best answers of a beam of five and their log-probabilities after normalisation:

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
with torch.inference_mode(), record_attention(predictor.model, "cross_attention") as maps:
    predictor.model(torch.tensor([src]), torch.tensor([[predictor.tokenizer.bos_id, *tgt[:-1]]]))
weights = list(maps.values())[-1][0].mean(dim=0).numpy()
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
# - Training tells the model every right token but one; writing does not. What is logged in training is not what you
#   get (8, 9).
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

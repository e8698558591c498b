# %% [markdown]
# # The Transformer, from the question to the running code
#
# In 2017, [*Attention Is All You Need*](https://arxiv.org/abs/1706.03762) (Vaswani et al.) introduced the network behind most language
# models of today. This notebook takes it apart and builds it up again: each part has a question, a picture, an example in small numbers,
# and a few lines of PyTorch. By chapter 8 those lines are a whole Transformer, which you train; at the end you train one on a real task.
#
# **How to read it.** Reading takes about an hour and a half; with all the exercises, four to six. Web pages can only be read; to run the
# cells, install `transduce`, a Python package with a Transformer of its own, copy the notebooks with `transduce learn DIR`, and open
# them in Jupyter. At each **Predict**, replace the `...` with your letter or number, say to yourself why, and run the cells below (on the
# web, cover them). In the exercises, `check` says whether you are right, and `hint` helps. Lines such as `LayerNorm = torch.nn.LayerNorm`
# come from hidden cells that compare our code with PyTorch's.
#
# **Write it yourself.** In the workshop [build_it](build_it.ipynb) you write the same thirteen pieces of code, with a checker. Chapters 1
# to 9 end with the steps that belong to them.
#
# **What you need.** Python, some PyTorch (tensors, `@`, gradients), derivatives and probabilities, and the idea of a neural network
# trained step by step, where the **learning rate** says how large a step is. No GPU, no network connection.
#
# **About the numbers.** A box that begins with *Measured* holds a number from this very run. Each claim stands in a file, the **ledger**,
# with the range we expected before running anything. The small print gives the section of the paper, the range *expected*, what was
# *measured*, and a command that measures it again. Where our range was wrong or too wide, *first expected* shows it, with its git commit,
# and *guarded by* the range checked today. *Against* names what the number contradicts.
#
# Where trainings are compared, we also tried 0.3 times the learning rate, and four times as many steps at whichever rate did better. The
# box gives both results, from an earlier run. *Seeds* counts the random starts behind a mean.
#
# chapter | question | go deeper
# ---|---|---
# [0](#0-·-Orientation:-what-goes-in,-what-comes-out) | What goes in, and what comes out? | —
# [1](#1-·-Self-attention), [2](#2-·-Multi-head-attention) | How does one word learn from the others? | [looking inside](looking_inside.ipynb)
# [3](#3-·-Positional-encoding) | How does the network know the order? | [positions](positions.ipynb)
# [4](#4-·-Feed-forward-networks,-position-wise) | What happens to what was collected? | —
# [5](#5-·-Residual-connections-and-layer-normalization) | How can the network be deep? | [norm and depth](norm_and_depth.ipynb)
# [6](#6-·-Encoder-and-decoder), [7](#7-·-Masks) | How do two halves work together, and what must nobody see? | [masks](masks.ipynb)
# [8](#8-·-Training), [9](#9-·-Decoding) | How does it learn, and how does it write? | [training recipe](training_recipe.ipynb)
# [10](#10-·-Why-it-matters) | Why does it matter? | [measured](why_it_matters.ipynb)
# [11](#11-·-Your-own-model,-on-a-real-task) | Can I train one on my own data? | [real translation](real_translation.ipynb), [break it](break_it.ipynb)

# %%
import math

import torch
import torch.nn.functional as F
from torch import nn

from transduce.learn import Ledger, check, hint
from transduce.learn.transformer import lesson

# %% tags=["hide-input"]
ledger = Ledger.load()  # what was measured, and what we expected

# %% [markdown]
# ## 0 · Orientation: what goes in, what comes out
#
# **Question.** A Transformer turns one sequence into another: a German sentence into an English one, letters into sounds. What does it work
# on, and what comes out?

# %% tags=["hide-input"]
lesson.figure_one_map("all")

# %% [markdown]
# **Without it** you would write rules: for words, endings, the order of words, and every exception. A network finds its own from pairs of
# examples.
#
# This is the paper's Figure 1, and our map: every chapter begins with it, the boxes of that chapter lit. On the left, the **encoder** reads
# the **source** (*Inputs*), all of it at once. On the right, the **decoder** writes the **target**, one word or part of a word at a time,
# looking at what the encoder made of the source and at what it has written so far (*Outputs so far*).
#
# Let's train a tiny model, on a task you can check by eye: *write a sentence backward, word by word*.

# %%
reverser = lesson.sentence_reverser()
print(lesson.SENTENCE, "->", reverser.answer([lesson.SENTENCE])[0])

# %% tags=["hide-input"]
parameters = sum(p.numel() for p in reverser.model.parameters())
print(f"{parameters:,} parameters (numbers that are learned), trained on {reverser.num_sentences:,} sentences")
print(
    f"loss (how wrong it is; explained below): {reverser.training.losses[0]:.2f}, then {reverser.training.losses[-1]:.3f}"
)
print(f"whole sentences right, of those it never saw: {reverser.share_right:.0%}")

# %% [markdown]
# Text is cut into **tokens**: words, or parts of words called **subwords**, so that rare words can be spelled from parts. Each token has a
# number, its **id**. The id picks a row of a table, the **embedding**, and this row, the token's embedding, is the list of numbers that the
# network works on. Each of its numbers is a **channel**; there are $d_\text{model}$ of them. The table is learned, like nearly
# all numbers in the network; the learned numbers are the **parameters**.
#
# Here is one sentence on its way in. `▁` marks the beginning of a word, `</s>` the end of the sentence. (The indented lines are for
# chapters 1 and 3.) The last three lines show what comes out after the begin symbol `<s>`, and then after each token written: the three
# most probable next tokens, each with its probability and the raw number it was made from, its **logit**.

# %% tags=["hide-input"]
traced = lesson.trace(reverser.model, reverser.tokenizer, lesson.SENTENCE)
print(lesson.traced_text(traced, reverser))

# %% [markdown]
# The network gives a logit for *every* token that might come next. The **softmax** turns logits into probabilities: it raises $e$ to each
# logit and divides by the sum, so that all are positive and add up to 1. The most probable token is written, and the decoder is asked
# again.
#
# How good is a model? Look at the probability $p$ it gave to the token that really came next, and take $-\ln p$. A probability of 1 costs
# nothing, a small one costs a lot. Averaged over all tokens, that is the **loss**, or **cross-entropy**. Its unit, from the
# natural logarithm, is the **nat**. A model that guesses evenly among $n$ tokens has a loss of $\ln n$.
#
# Sentences are processed together, as a **batch**. Here is Figure 1 again with the shape of what leaves each box while a batch of three
# sentences runs through, `<s>` and four tokens of each target having gone into the decoder: (sentences, tokens, channels). After the box
# *Linear* there is a logit for each possible token in place of the channels. (Q, K and V are for chapter 1.)

# %% tags=["hide-input"]
lesson.live_figure_one(reverser)

# %% [markdown]
# Between the embeddings and the box *Linear*, *no box changes the shape*. That is why boxes can be stacked in **layers**, the two framed
# groups, each repeated $N$ times. And *tokens meet only in the orange boxes*. Every other box handles each token separately.
#
# Step through all of it here: arrow buttons move from token to token, a click enlarges a picture, and the frame scrolls. (Chapters 1, 2,
# 5, 6 and 9 explain what you see.)

# %% tags=["hide-input"]
lesson.page_of(reverser, "the old dog finds a fox")

# %% [markdown]
# ## 1 · Self-attention
#
# **Question.** *The cat sleeps because it is tired.* To understand *it*, you look back and find the cat. How can a network fetch
# information from elsewhere in the sentence, when nobody can say beforehand from where?

# %% tags=["hide-input"]
lesson.figure_one_map("self-attention", "masked attention", "cross-attention")

# %% [markdown]
# **Without it.** If every token is handled separately, *it* is the same list of numbers in every sentence ever written. You could connect
# each token to its neighbors; but the cat is three words back here, and twenty in the next sentence. The connection must be chosen *by
# content*, anew each time.
#
# ### A soft dictionary
#
# Python has something that fetches by content: a dictionary. You hand it a **query**; it compares the query with its **keys**, and returns
# the **value** stored under the one that matches.

# %% tags=["hide-input"]
lesson.soft_look_up()

# %% [markdown]
# A dictionary is all or nothing: one key matches, the others do not. That is bad for learning: no small change makes a wrong value a little
# less wrong. So we make the dictionary soft. *Every* key matches to some degree, and what comes back is a mixture of all the values, each
# in proportion to how well its key matched. This is **attention**, and all three boxes lit in the map do it (chapter 6 tells them apart).
# Now a small change to a query changes the mixture a little, and the network can *learn* what to ask for.
#
# ### The example that stays with us
#
# Three tokens, *the cat sleeps*, with four channels each, come back in most chapters up to 7. You may read the second channel
# as "how much of a noun am I?" and the fourth as "how much of a verb?", though a real network chooses its own meanings.

# %%
# X has the shape (1 sentence, 3 tokens, 4 channels); sees_all is explained below
X, TOKENS, sees_all = lesson.X, lesson.TOKENS, lesson.SEES_ALL
print(lesson.rows(X[0]))

# %% [markdown]
# To start simply, let each token be its own query, key and value. Follow *sleeps*, (1, 1, 0, 2):
#
# **Compare.** How well does a query match a key? Multiply them channel by channel and add up: the dot product. It is large when both are
# large in the same channels. *sleeps* against *the*: $1 \cdot 1 + 1 \cdot 0 + 0 \cdot 1 + 2 \cdot 0 = 1$. Against *cat*: $0 + 2 + 0 + 2 =
# 4$. Against itself: $1 + 1 + 0 + 4 = 6$.
#
# **Scale.** Divide by 2, the square root of the number of channels. (We will see why.) This gives the **scores**: 0.5, 2, 3.
#
# **Share out.** The softmax turns the scores into **weights**: $e^{0.5}, e^2, e^3$ are about 1.65, 7.39 and 20.09; divided by their sum,
# 0.06, 0.25, 0.69. They add up to 1: each query has exactly one whole weight to give away. (Elsewhere, "weights" often means parameters.
# Here it never does.)
#
# **Mix.** The output is 0.06 of *the* plus 0.25 of *cat* plus 0.69 of *sleeps*: (0.75, 1.20, 0.06, 1.63), from unrounded weights. (In the
# picture below, Q, K and V hold all queries, keys and values; $d_k$ is their number of channels.)
#
# **Predict.** Before you look: to which token does *cat*, (0, 2, 0, 1), give the largest weight? "A": *the*. "B": itself. "C": *sleeps*.

# %%
my_choice = ...

# %% tags=["hide-input"]
lesson.picture("attention")

# %% tags=["hide-input"]
lesson.predicted(
    my_choice,
    "B",
    "cat · cat = 5 and cat · sleeps = 4, so after halving the scores are 2.5 and 2: itself first, with 0.59.",
)

# %% [markdown]
# Read along a row of the weights: in these proportions the values are mixed for its query.
#
# ### Asking for something you are not
#
# So far a token mostly finds tokens that resemble it, above all itself. But a verb looks for its *subject*, which does not resemble it. So
# queries, keys and values are *made from* the tokens: multiplied by three matrices, whose numbers are learned. $W^Q$ makes the query (what
# a token asks), $W^K$ the key (what it can be found by), $W^V$ the value (what it hands over).
#
# Let $W^Q$ turn "I am a verb" (the fourth channel) into "I am looking for a noun" (the second), and leave keys and values as they are:

# %%
W_Q = torch.zeros(4, 4)
W_Q[3, 1] = 2.0  # from a token's fourth channel into its query's second
queries = X @ W_Q
weights = (queries @ X.transpose(1, 2) / math.sqrt(4)).softmax(dim=-1)
print("queries\n" + lesson.rows(queries[0]), "\n\nweights\n" + lesson.rows(weights[0]))

# %% [markdown]
# With that one number, *sleeps* gives most of its weight, 0.87, to *cat*: it has found its subject. *the* has no verb in it, asks for
# nothing, and gets an even mixture of everyone. Point at any number to see where it came from:

# %% tags=["hide-input"]
lesson.attention_page(queries[0], X[0], X[0], queries=TOKENS, keys=TOKENS)

# %% [markdown]
# ### The formula
#
# Put all queries into the rows of one matrix $Q$, all keys into $K$, all values into $V$, and the four steps become one line (equation 1,
# section 3.2.1):
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V$$
#
# symbol | shape | what it is
# ---|---|---
# $Q$ | $T \times d_k$ | queries: a row for each of the $T$ tokens that look
# $K$ | $S \times d_k$ | keys: a row for each of the $S$ tokens that are looked at
# $V$ | $S \times d_k$ | values: what each of those hands over
# $QK^\top$ | $T \times S$ | every dot product of a query $i$ with a key $j$
# $d_k$ | | the number of channels of a query or a key
#
# When all three are made from the same tokens $X$, as $Q = XW^Q$, $K = XW^K$ and $V = XW^V$, we speak of **self-attention**: a sentence
# looks at itself.
#
# In code, attention also takes a **mask**, `may_look`: True where a query may look at a key. A hidden key gets a score of minus infinity,
# which the softmax turns into a weight of 0. Until chapter 7 everyone may look at everyone: `sees_all` is True throughout.


# %% tags=["from-piece-1"]
from transduce.learn.build_it.pieces import attention

# %%
print(lesson.rows(attention(X, X, X, sees_all)[0]))

# %% tags=["hide-input"]
loop = torch.zeros(3, 4)
for i in range(3):  # the same, one number at a time
    scores = [float(X[0, i] @ X[0, j]) / math.sqrt(4) for j in range(3)]
    for j in range(3):
        loop[i] += math.exp(scores[j]) / sum(map(math.exp, scores)) * X[0, j]
assert torch.allclose(attention(X, X, X, sees_all)[0], loop, atol=1e-6)
assert torch.allclose(attention(X, X, X, sees_all), F.scaled_dot_product_attention(X, X, X), atol=1e-6)
print("three lines of code, two plain loops and torch's own attention agree")

# %% [markdown]
# ### Why divide by $\sqrt{d_k}$?
#
# A dot product is a sum of $d_k$ terms. If the channels are independent, with mean 0 and variance 1, that sum has a variance of $d_k$: the
# more channels, the larger the scores. Dividing by $\sqrt{d_k}$ brings the variance back to 1.
#
# **Predict.** Take one query and twenty keys, each made of 256 random numbers. If you do *not* divide, how large is the largest of the
# twenty weights, on average? "A": about 1/20, because all keys are equally random. "B": about a third. "C": nearly 1.

# %%
my_largest = ...

# %% tags=["hide-input"]
saturated = lesson.saturation()
lesson.saturation_curves(saturated)

# %% tags=["hide-input"]
reason = (
    "The scores have a standard deviation of 16, so the largest is often several units above the next; a lead of 3 "
    "already makes its weight e³ = 20 times as large."
)
lesson.predicted(my_largest, "C", reason)

# %% tags=["hide-input"]
ledger.settle("root-unscaled-softmax-saturates", saturated)

# %% [markdown]
# The soft dictionary has turned hard again, before anything has been learned. Once one weight is close to 1, a small change of the scores
# barely moves the weights, so almost no gradient flows back. (In the middle of the figure: the size of the derivative of weights with
# respect to scores. At $d_k$ from 4 to 16, where scores are 2 to 4 times too large, it is not smaller yet; beyond, it falls. So doubling
# $d_k$ with the old divisor, which leaves scores $\sqrt2$ times too large, only sharpens the weights.)

# %% tags=["hide-input"]
ledger.settle("root-saturated-softmax-hands-back-little", saturated)

# %% [markdown]
# Does a network recover from that start? Here it is trained with the division and without, from two random starts each:

# %% tags=["hide-input"]
root = lesson.training_without_root()
lesson.root_curves(root)

# %% tags=["hide-input"]
ledger.settle("root-training-without-it", root)

# %% [markdown]
# **Exercises.**

# %%
# 1. By hand: the scores, already divided, are ln 1 and ln 3;
#    the values are (4, 4) and (8, 4). What comes out?
my_output = ...  # two numbers
check("attention-two-keys", my_output)


# %%
def my_attention(q, k, v, mask=None):
    """2. Without looking up: equation 1 for q, k and v of shape (..., len, d_k),
    whatever axes stand in front. The mask, if there is one, is (len, len),
    True where a query may look at a key."""
    ...


check("attention-function", my_attention)

# %%
# 3. Which of these leave the OUTPUT of attention as it is? A set of them.
#    "add 5 to one row of scores", "add 5 to all scores",
#    "add 5 to one column of scores", "multiply all scores by 2",
#    "add the same vector to every key", "add the same vector to every value"
my_changes = ...
check("attention-shift", my_changes)


# %%
def my_derivative(weights, values):
    """4. Harder, and not needed later. For one query: the derivative of its output
    by its scores, one row for each key, from its weights, of shape (keys,),
    and the values, of shape (keys, channels)."""
    ...


check("attention-derivative", my_derivative)

# %%
hint("attention-two-keys")

# %% [markdown]
# **What people get wrong.** *"Softmax over which axis?"* Over the keys: each *query* has one whole weight to share out. *"The weights
# explain the output."* They say where a token looked, not what was made of it ([looking inside](looking_inside.ipynb)).
#
# **Now write it:** step 1 of [build_it](build_it.ipynb).
#
# ## 2 · Multi-head attention
#
# **Question.** One attention gives each token *one* mixture. What if a token needs two things from two places?

# %% tags=["hide-input"]
lesson.figure_one_map("self-attention", "masked attention", "cross-attention")

# %% [markdown]
# **Without it.** To be translated, *sleeps* needs its subject (is it one cat or several?) *and* perhaps the word before it. With one row of
# weights it can give half to each, and gets the average of the two values. An average blurs: if two numbers average 5, you cannot say what
# either was.
#
# So look several times at once. Cut the channels of queries, keys and values into equal slices, and let each slice do an attention of its
# own, with scores and weights of its own. Each is called a **head**. Their outputs, laid side by side, have as many channels as before.
# This is **multi-head attention**.

# %% tags=["hide-input"]
lesson.picture("heads")

# %% [markdown]
# In our example, two heads with two channels each. Take *sleeps* = (1, 1 | 0, 2) once more, and leave the matrices aside so that you can
# follow by hand. Head 1 sees (1, 1): its dot products with *the* (1, 0), *cat* (0, 2) and itself are 1, 2, 2. Head 2 sees (0, 2): its dot
# products are 0, 2, 4. Divided by $\sqrt2$, as each head has two channels, and put through the softmax, the two rows of weights come out
# quite different:

# %% tags=["hide-input"]
lesson.picture("multi-head")

# %% [markdown]
# Head 1 divides its attention mostly between *cat* and *sleeps* (0.40 each); head 2 is mostly on *sleeps* (0.77). Neither blurs the other.
#
# **The formula** (section 3.2.2), for self-attention:
#
# $$\begin{aligned}
# \mathrm{MultiHead}(X) &= \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_H)\, W^O \\
# \mathrm{head}_m &= \mathrm{Attention}(X W_m^Q,\ X W_m^K,\ X W_m^V)
# \end{aligned}$$
#
# symbol | shape | what it is
# ---|---|---
# $H$ | | number of heads (the paper writes $h$, and takes 8)
# $W_m^Q, W_m^K, W_m^V$ | $d_\text{model} \times d_k$ | make the queries, keys and values of head $m$
# $d_k$ | | $d_\text{model} / H$: the heads share the channels
# $W^O$ | $d_\text{model} \times d_\text{model}$ | mixes what the heads found
#
# Two functions to cut and to join, then the module. (Each of its matrices holds those of all heads, side by side.) In the comments, B
# counts sentences, T tokens, H heads, and D channels: it is $d_\text{model}$. `memory` is where keys and values come from: in
# self-attention, `x` itself.


# %% tags=["from-piece-2"]
from transduce.learn.build_it.pieces import join_heads, split_heads

# %% tags=["from-piece-3"]
from transduce.learn.build_it.pieces import MultiHead

# %% tags=["hide-input"]
torch.manual_seed(1)
module, theirs = MultiHead(24, 4), nn.MultiheadAttention(24, 4, batch_first=True)
parts = (module.query, module.key, module.value)
theirs.load_state_dict({
    "in_proj_weight": torch.cat([part.weight for part in parts]), "in_proj_bias": torch.cat([part.bias for part in parts]),
    "out_proj.weight": module.output.weight, "out_proj.bias": module.output.bias,
})  # fmt: skip
x, everyone = torch.randn(2, 7, 24), torch.ones(7, 7, dtype=torch.bool)
assert torch.equal(join_heads(split_heads(x, 4)), x)
assert torch.allclose(module(x, x, everyone), theirs(x, x, x, need_weights=False)[0], atol=1e-5)
print("MultiHead = torch.nn.MultiheadAttention with the same parameters")

# %%
two_heads = lesson.plain_heads(MultiHead)  # its matrices change nothing: see the picture
print(lesson.rows(two_heads(X, X, sees_all)[0].detach()))

# %% [markdown]
# **Experiment.** A task that needs two look-ups: in a row of random symbols, name *the previous one and the very first one* at every
# position from the third on. One network has a single head of 64 channels, another has four heads of 16: the same number of parameters.
# (Those marked *FFN* come up below.)
#
# **Predict.** After a short training the four heads are right everywhere. The single head... "A": is as good, since it has as many
# parameters. "B": gets one of the two symbols, and rarely both. "C": gets neither.

# %%
my_heads = ...

# %% tags=["hide-input"]
found = lesson.two_look_ups()
lesson.look_up_bars(found)

# %% tags=["hide-input"]
lesson.predicted(
    my_heads,
    "B",
    f"Both right: 1 head at {found.both['1 head']:.0%} of positions, 4 heads at {found.both['4 heads']:.0%}.",
)

# %% tags=["hide-input"]
ledger.settle("four-heads-learn-two-look-ups-sooner", found)

# %% [markdown]
# Look at the weights. A head that looks one step to the left has its dark cells just below the diagonal; one that looks at the first symbol
# has them in the first column.

# %% tags=["hide-input"]
lesson.look_up_maps(found, "4 heads", "symbol ")

# %% tags=["hide-input"]
lesson.look_up_maps(found, "1 head", "symbol ")

# %% [markdown]
# The single head has settled for one of the two. That is no law: with more steps it partly catches up. An uneven mixture, 0.6 of one vector and
# 0.4 of another, is a different vector for each pair of symbols, so it can be taken apart. With the network of chapter 4 behind it (the
# *FFN* of the figure), one head learns *both* symbols, given time:

# %% tags=["hide-input"]
ledger.settle("one-head-and-a-network-learn-both", found)

# %% [markdown]
# So two look-ups do not need several heads; they are only easier with them.
#
# Here are all heads of the model of chapter 0 where the decoder looks at the source (rows: tokens that go into the decoder; columns:
# tokens of the source). In layer 2, most look at the token to be written next: the diagonal from top right to bottom left.

# %% tags=["hide-input"]
cross = {f"layer {i + 1}": traced.attention[f"decoder.layers.{i}.cross_attention"] for i in range(2)}
lesson.head_maps(cross, queries=traced.written, keys=traced.source)

# %% [markdown]
# **Exercises.**


# %%
def my_split(x, num_heads):
    """1. (batch, len, d_model) -> (batch, heads, len, d_k):
    head 1 has the first channels of every token."""
    ...


check("heads-split", my_split)


# %%
def my_count(d_model, num_heads):
    """2. Parameters of multi-head attention: each of its four nn.Linear
    has a matrix, and a constant for each channel."""
    ...


check("heads-parameters", my_count)

# %% [markdown]
# **What people get wrong.** *"Eight heads cost eight times as much."* They share the channels: as many parameters, as many multiplications.
# Only the tables of weights become eight, each with a softmax and room to store it. *"Split with `view`."* (B, T, D) must become (B, T, H, D
# / H) and then be transposed; a `view` straight to (B, H, T, D / H) mixes up tokens, without any error ([break it](break_it.ipynb) has
# that bug).
#
# **Now write it:** steps 2 and 3 of [build_it](build_it.ipynb).
#
# ## 3 · Positional encoding
#
# **Question.** *Dog bites man* is not *man bites dog*. How does the network know which word came first?

# %% tags=["hide-input"]
lesson.figure_one_map("positions")

# %% [markdown]
# **Without it.** Look again at what attention computes for *sleeps*: a sum over tokens, each with its weight. A sum does not change when
# its terms change places, and the weights depend only on what the tokens *are*.
#
# **Predict.** We feed attention the three tokens backward, *sleeps cat the*. What comes out for *cat*? "A": exactly the same numbers as
# before. "B": other numbers, because its neighbors have changed sides.

# %%
my_order = ...

# %% tags=["hide-input"]
lesson.blind_to_order()

# %% tags=["hide-input"]
lesson.predicted(my_order, "A", "Every token gets the same vector as before; only the rows have changed places.")

# %% [markdown]
# To attention, a sentence is a bag of words: *dog* carries the same numbers in both sentences. So the position has to be *put in*, into the
# vector of each token, before the first layer.
#
# ### Why not simply 0, 1, 2, ...?
#
# As they reach this point, the channels of an embedding are numbers of about 1 (the end of this chapter says how). But the two hundredth
# token would get 199, which shouts down the word itself. Then divide by the length, so that positions run from 0 to 1? Now "one step to the
# right" means 0.1 in a sentence of eleven tokens and 0.025 in one of forty-one: a rule such as "look at the previous token" would be a
# different rule for each length. Or give each position a learned row of a table? That works, up to the longest sentence seen in training;
# beyond it, no row was ever learned. (Our own choice will not help there, either: [positions](positions.ipynb).)
#
# We want a code that stays small, differs for every position, and in which one step to the right is the same kind of change everywhere.

# %% tags=["hide-input"]
lesson.position_schemes()

# %% [markdown]
# ### Clock hands
#
# A clock has just these properties. A second hand alone repeats itself every minute; a minute hand alone moves too little to show seconds.
# Together with the hour hand, they tell apart all the seconds of twelve hours, and no hand ever leaves its dial.
#
# So give each position a set of clocks. The first hand turns by one radian (57 degrees) from each position to the next; each following one
# turns more slowly. A hand is written as two numbers, the sine and the cosine of its angle: how far its tip lies to the right, and how far
# up. (One of them would not do: sines of 30 and 150 degrees are equal.) So each clock takes a pair of channels.

# %% tags=["hide-input"]
lesson.clock_hands()

# %% [markdown]
# Compare positions 0 and 1 with 10 and 11. In each row the hand has moved by the same angle, though it started elsewhere. *One step to the
# right is the same turn of the hands, wherever you are.* Three steps are, too. In these dials, with a gray dot for each of 64 positions,
# arrows lead from position 0 to 3, and from 5 to 8:

# %% tags=["hide-input"]
lesson.rotations(lesson.sinusoids(64, 64), pairs=(1, 4, 8), offset=3)

# %% [markdown]
# A turn by a fixed angle is a linear map: a multiplication by a matrix. So "three tokens to the left of me" is something that a matrix such
# as $W^Q$ can express once and for all positions. This was the authors' reason for it (section 3.5).
#
# ### The formula of the clocks
#
# These vectors of sines and cosines, the **sinusoids**, are the paper's **positional encoding** $PE$:
#
# $$PE_{(pos,\,2c)} = \sin\!\big(pos / 10000^{2c/d_\text{model}}\big), \qquad PE_{(pos,\,2c+1)} = \cos\!\big(pos / 10000^{2c/d_\text{model}}\big)$$
#
# symbol | what it is
# ---|---
# $pos$ | position in the sequence, counted from 0
# $c$ | number of the clock, from 0 to $d_\text{model}/2 - 1$ (the paper writes $i$)
# $10000^{2c/d_\text{model}}$ | how many times slower clock $c$ turns than clock 0 (in the code: `slowness`)
#
# Our example has four channels, so two clocks. The first turns by 1 radian a step, the second by 1/100.


# %% tags=["from-piece-4"]
from transduce.learn.build_it.pieces import sinusoids

# %%
print(lesson.rows(sinusoids(3, 4), ("position 0", "position 1", "position 2")))

# %% tags=["hide-input"]
naive = [[(math.cos if c % 2 else math.sin)(p / 10000 ** (2 * (c // 2) / 32)) for c in range(32)] for p in range(60)]
assert torch.allclose(sinusoids(60, 32), torch.tensor(naive), atol=1e-6)
print("these three lines of code and the formula, one number at a time, agree")

# %% [markdown]
# At position 1, $\sin 1 = 0.84$ and $\cos 1 = 0.54$; the slow clock has hardly moved. Now *add* these rows to the tokens. *cat*, at
# position 1, becomes (0, 2, 0, 1) + (0.84, 0.54, 0.01, 1.00) = (0.84, 2.54, 0.01, 2.00). And attention is no longer blind:

# %%
forward, backward = X + sinusoids(3, 4), X.flip(1) + sinusoids(3, 4)
of_cat = [attention(x, x, x, sees_all)[0, 1] for x in (forward, backward)]
print(lesson.rows(torch.stack(of_cat), ("cat in 'the cat sleeps'", "cat in 'sleeps cat the'")))

# %% [markdown]
# *cat* stands at position 1 in both, but its neighbors now carry other positions.
#
# ### Why added, and not attached?
#
# You could attach the position as extra channels. That works, but those channels are lost to the words. Adding costs nothing. But does
# the sum not garble both, word and position?
#
# With four channels it might. With hundreds there is room: unrelated directions in a space of many dimensions are nearly at right angles,
# so words and positions can be told apart. And look at what a query makes of a sum: $(x + PE)\,W^Q = x\,W^Q + PE\,W^Q$. A key is such a
# sum, too, so their product has four terms, from word with word to position with position. A head can learn to listen to any of them.
#
# The dot product of two position vectors depends only on how far apart the positions are, and is large for neighbors:

# %% tags=["hide-input"]
lesson.table_and_similarity(sinusoids(60, 32))

# %% [markdown]
# On the left, each row is a position and each pair of columns a clock, fast ones first. On the right, the products of all pairs of rows,
# scaled so that a row with itself gives 1.
#
# ### And why is the embedding multiplied by $\sqrt{d_\text{model}}$?
#
# Section 3.4 does so before the positions are added. In the paper, one matrix does two jobs: it is the embedding, of source and target, and
# it makes the logits at the other end, where the logit of a token is the dot product of its row with what leaves the last layer. What
# leaves the last layer has length (root of the sum of squares) $\sqrt{d_\text{model}}$ (chapter 5), so for logits of about 1 its rows must
# be short, of length about 1. A row of sinusoids has length $\sqrt{d_\text{model}/2}$, and next to it a word of length 1 drowns. The factor
# on the way in settles the conflict.
#
# What if it is left out, in small networks?

# %% tags=["hide-input"]
scale = lesson.embedding_scale()
print(
    "reversal: to write symbols backward; sorting: to put them in order\n"
    "the paper: with the factor\n"
    "large: embeddings start as long as the factor would make them\n"
    "untied: two matrices, one for each of the two jobs\n"
    "losses: on reversal, from one random start; the third plot trains it for longer\n\n"
    f"a row of positions: length {scale.length_of_positions:.1f}\n"
    f"guessing evenly among all ids: loss {scale.guessing:.2f}"
)
num_steps = len(scale.trainings["reversal"]["the paper"][0].losses)
for name, length in scale.length_of_embeddings.items():
    losses = f"{scale.starts[name]:5.2f}, after {num_steps} steps {scale.ends[name]:.2f}"
    print(f"{name:24} length {length:.1f}; loss {losses}")
lesson.scale_curves(scale)

# %% tags=["hide-input"]
ledger.settle("embedding-factor-speeds-learning", scale)

# %% tags=["hide-input"]
ledger.settle("embedding-factor-on-sorting", scale)

# %% [markdown]
# So it saves time, no more. Could larger embeddings at the start replace the factor? With two separate matrices, yes. With one, the
# logits are far too large at first:

# %% tags=["hide-input"]
ledger.settle("embedding-one-matrix-two-jobs", scale)

# %%
# Exercise: what is the length of a row of the sinusoids with d_model = 512,
# at any position?
my_length = ...
check("embedding-length", my_length)

# %% [markdown]
# **What people get wrong.** *"`x + sinusoids(...)` will do."* If the sum is not assigned to anything, it is thrown away; the loss still
# falls ([break it](break_it.ipynb)). *"No Transformer can do without."* An encoder cannot; a decoder can: its mask lets each token see only
# itself and earlier ones (chapter 7; [positions](positions.ipynb)).
#
# **Now write it:** step 4 of [build_it](build_it.ipynb).
#
# ## 4 · Feed-forward networks, position-wise
#
# **Question.** Attention collects information. What then *does* something with it?

# %% tags=["hide-input"]
lesson.figure_one_map("feed-forward")

# %% [markdown]
# **Without it.** Once its weights are settled, attention only mixes: what comes out is an average of values. An average cannot say "noun
# *and* animal, therefore a living thing"; that takes a decision, a bend in the curve. The **feed-forward network**, FFN for short, makes
# such decisions, for each token by itself: it widens the vector (*up*; the picture, with room for two questions only, narrows it), asks many
# small yes-or-no questions at once, and narrows the answers back to $d_\text{model}$ channels (*down*).

# %% tags=["hide-input"]
lesson.picture("feed-forward")

# %% [markdown]
# In the example there are two questions: "is the second channel above 1?" and "is the fourth above 1?". For *cat*, (0, 2, 0, 1), they come
# to $2 - 1 = 1$ and $1 - 1 = 0$: yes to the first. For *sleeps*, 0 and 1. For *the*, $-1$ and $-1$; and here is the bend: negative numbers
# become 0. This is the **ReLU**, $\max(0, \cdot)$; without it, two linear maps in a row would be worth one, added constants included. A
# real network learns thousands of such questions.
#
# $$\mathrm{FFN}(x) = \max(0,\ xW_1 + b_1)\,W_2 + b_2 \qquad \text{(equation 2, section 3.3)}$$
#
# symbol | shape | what it is
# ---|---|---
# $x$ | $d_\text{model}$ | the vector of *one* token
# $W_1$, $b_1$ | $d_\text{model} \times d_\text{ff}$, $d_\text{ff}$ | the questions, and how much is needed for a yes
# $W_2$, $b_2$ | $d_\text{ff} \times d_\text{model}$, $d_\text{model}$ | what to write for each yes, and what to write always
# $d_\text{ff}$ | | the number of channels in between, in the paper four times $d_\text{model}$
#
# The added constants $b_1$ and $b_2$ are called **biases**. **Position-wise** means that the same network runs at each position and no
# token sees another: equal rows in, equal rows out. (A linear map that slides along a sequence, seeing $w$ tokens at a time, is a
# **convolution** of width $w$; the paper also describes this network as two of width 1.)


# %% tags=["from-piece-6"]
from transduce.learn.build_it.pieces import FeedForward

# %%
print(lesson.rows(lesson.feed_forward_example(FeedForward)(X)[0].detach()))

# %% tags=["hide-input"]
torch.manual_seed(2)
network, order = FeedForward(24, 96), torch.tensor([3, 0, 6, 2, 5, 1, 4])
wide = F.conv1d(x.transpose(1, 2), network.up.weight[:, :, None], network.up.bias).relu()
narrow = F.conv1d(wide, network.down.weight[:, :, None], network.down.bias).transpose(1, 2)
assert torch.allclose(network(x[:, order]), network(x)[:, order], atol=1e-6) and torch.allclose(
    narrow, network(x), atol=1e-5
)
print("shuffled tokens in, shuffled tokens out; and the same as two convolutions of width 1")

# %% [markdown]
# **Experiment.** "Attention moves things, the feed-forward network computes": is that so? At each position, add two neighboring numbers
# modulo 11 (the remainder after division by 11). One network is a whole layer, attention and feed-forward; another, with as many
# parameters, is three layers of attention alone. (The figure also shows a single one, with a third of the parameters.)
#
# **Predict.** Attention alone... "A": never learns it, since it can only mix. "B": learns it, more slowly. "C": learns it just as fast.

# %%
my_rule = ...

# %% tags=["hide-input"]
alone = lesson.attention_alone()
lesson.attention_alone_curves(("the sum of two neighbors modulo 11", alone))

# %% tags=["hide-input"]
lesson.predicted(
    my_rule,
    "B",
    "Its weights depend on the tokens, and the softmax bends: that is enough to compute with, even in one layer.",
)

# %% tags=["hide-input"]
ledger.settle("ffn-attention-alone-and-a-rule", alone)

# %% tags=["hide-input"]
ledger.settle("ffn-learns-rules-sooner", alone)

# %% [markdown]
# The saying is too simple. Now a table of random entries, one for each pair of symbols, which can only be memorized.

# %% tags=["hide-input"]
table = lesson.random_table()
lesson.attention_alone_curves((f"a random table of {table.num_entries:,} entries", table))

# %% tags=["hide-input"]
ledger.settle("ffn-learns-tables-sooner", table)

# %% [markdown]
# Here, too, the feed-forward network only saves time: reason enough to have it.
#
# **Exercises.**

# %%
# 1. Which of these are position-wise? A set out of:
#    "ReLU", "a linear layer on the channels", "layer normalization",
#    "softmax over the keys", "the mean of all positions",
#    "adding the row of its position"
#    (Layer normalization, of the next chapter, rescales the channels of one token.)
my_set = ...
check("ffn-position-wise", my_set)


# %%
def my_convolutions(feed_forward):
    """2. The same function as a torch.nn.Sequential with two nn.Conv1d of width 1:
    (batch, channels, len) in and out. `feed_forward` is that of the package:
    its parts are called `up_proj` and `down_proj`."""
    ...


check("ffn-convolutions", my_convolutions)


# %%
def my_share(d_model, d_ff):
    """3. Of all numbers in the matrices of an encoder layer (no biases):
    the share in the feed-forward network."""
    ...


check("ffn-share", my_share)

# %% [markdown]
# **What people get wrong.** *"Attention is all you need."* So says the title; exercise 3 says where most of a layer's parameters are.
#
# **Now write it:** step 6 of [build_it](build_it.ipynb); step 5 belongs to the next chapter.
#
# ## 5 · Residual connections and layer normalization
#
# **Question.** After every attention and every feed-forward network, Figure 1 has the same small box: Add & Norm. What does each half do,
# and does their order matter?

# %% tags=["hide-input"]
lesson.figure_one_map("add & norm")

# %% [markdown]
# **Without them.** Send eight different tokens through 24 layers with random parameters: with both, with one of them, with neither. On the
# left, how large the numbers are: their **root mean square**, the root of the mean of their squares. On the right, how alike the tokens
# are: the cosine of the angle between two of them, 1 if they point the same way and 0 at right angles.

# %% tags=["hide-input"]
lesson.through_layers()

# %% [markdown]
# Without the addition (gray, red), all tokens are the same after two layers, norm or not. Attention averages, and averages of averages are
# all alike. With it (orange, blue), they become alike only slowly. Without the norm (gray, orange), the numbers drop to about a
# sixteenth within two layers, or grow with every layer; with it (red, blue), they keep their size.
#
# **Add.** Attention and the feed-forward network are a layer's **sub-layers**. What comes out of a sub-layer is *added* to what went in, so
# it only has to find what should *change*. This is a **residual connection**: in the map, the line that goes around a box. In our example
# *the* = (1, 0, 1, 0) gets the mixture (0.81, 0.68, 0.51, 0.80) from attention, and goes on as (1.81, 0.68, 1.51, 0.80).
#
# **Norm.** **Layer normalization** takes the channels of *one* token, subtracts their mean, and divides by their standard deviation. The
# token (1, 0, 1, 0) has the mean ½; all its channels are ½ away from it; out comes (1, −1, 1, −1).

# %% tags=["hide-input"]
lesson.picture("layer-norm")

# %% [markdown]
# **Predict.** A token is (1, 0, 0, 0). After the norm, what is its first number?

# %%
my_first = ...

# %% [markdown]
# $$\mathrm{LayerNorm}(x) = g \cdot \frac{x - \mu}{\sqrt{\sigma^2 + 10^{-5}}} + b$$
#
# symbol | what it is
# ---|---
# $x$ | the vector of one token
# $\mu$, $\sigma^2$ | mean and variance of its channels; the variance is the mean of $(x - \mu)^2$
# $10^{-5}$ | *inside* the root: a token whose channels are all equal gives 0, not 0/0
# $g$, $b$ | gain and bias: a learned number for each channel, 1 and 0 at the start


# %% tags=["from-piece-5"]
from transduce.learn.build_it.pieces import LayerNorm

# %%
print(lesson.rows(LayerNorm(4)(X + attention(X, X, X, sees_all))[0].detach()))

# %% tags=["hide-input"]
norm, theirs = LayerNorm(24), nn.LayerNorm(24, eps=1e-5)
for part in (norm.gain, norm.bias):
    nn.init.normal_(part)
theirs.load_state_dict({"weight": norm.gain, "bias": norm.bias})
assert torch.allclose(norm(x), theirs(x), atol=1e-5)
print("LayerNorm = torch.nn.LayerNorm")

# %% tags=["hide-input"]
one = torch.tensor([1.0, 0, 0, 0])
bessel = float(((one - one.mean()) / one.std())[0])
lesson.predicted(
    my_first,
    float(LayerNorm(4)(one)[0].detach()),
    f"The variance is 3/16, and ¾ / √(3/16) = √3. With x.std() it would be {bessel:.2f}.",
)

# %% [markdown]
# The 1.50 is a trap: `x.std()` divides by $d_\text{model} - 1$. A network with that norm trains fine, but gives wrong results with
# parameters trained elsewhere.
#
# **In which order?** The paper computes $\mathrm{LayerNorm}(x + f(x))$ around each sub-layer $f$: **post-norm**. Most later networks
# compute $x + f(\mathrm{LayerNorm}(x))$: **pre-norm**. In post-norm, the sum passes through every norm, and so does every gradient on its
# way back. In pre-norm nothing touches the sum:
#
# $$x_\text{end} = x_0 + f_1(\dots) + f_2(\dots) + \dots$$
#
# This sum, of what came in ($x_0$) and what each sub-layer adds, is the **residual stream**. Along it a gradient travels from the end to
# the beginning undiminished, however deep the stack. Let's add up what the sub-layers of a pre-norm encoder write:

# %% tags=["hide-input"]
found = lesson.stream()
ledger.settle("the-residual-stream-is-a-sum", found)

# %% tags=["hide-input"]
lesson.stream_bars(found)

# %% [markdown]
# Bars: the size of what each sub-layer of an untrained encoder adds. Line: the size of the sum so far. It grows, so a pre-norm stack ends
# with one more norm. ([norm and depth](norm_and_depth.ipynb) finds out which order trains better.)
#
# In training, **dropout** sets a random tenth of a sub-layer's output (and of embedding plus position) to 0, and scales up the rest, so
# that the network relies on no single number. In use it is off.
#
# **Exercises.**


# %%
def my_layer_norm(x):
    """1. Layer normalization without gain and bias:
    x of shape (tokens, channels), 1e-5 inside the root."""
    ...


check("norms-layer-norm", my_layer_norm)


# %%
def my_pre_norm(x, sublayer, norm):
    """2. The pre-norm order, in one line."""
    ...


check("norms-pre-norm", my_pre_norm)

# %%
# 3. The input of a pre-norm encoder of twelve layers, and what each sub-layer adds,
#    are independent; each has mean 0 and a root mean square of 1.
#    What is the root mean square of the stream at the end?
my_size = ...
check("norms-growth", my_size)

# %%
hint("norms-growth")

# %% [markdown]
# **What people get wrong.** *"It normalizes over the sentence."* It takes one token at a time: other tokens do not matter. *"Pre-norm is
# post-norm with the line moved."* It also needs the norm at the end.
#
# **Now write it:** step 5 of [build_it](build_it.ipynb).
#
# ## 6 · Encoder and decoder
#
# **Question.** All the parts are there. How do they become *two* stacks, and how do the two talk to each other?

# %% tags=["hide-input"]
lesson.figure_one_map(
    "self-attention",
    "masked attention",
    "cross-attention",
    "feed-forward",
    "add & norm",
    "memory",
    "embedding",
    "linear",
)

# %% [markdown]
# **Without two halves.** An encoder alone gives one output for each source token; but a translation has a length and an order of its own,
# and each word depends on those already written. A decoder alone knows nothing of the source.
#
# So the encoder reads the source once and leaves one vector for each token, together called the **memory**. Every decoder layer may ask
# it: queries come from the target, keys and values from the memory. This is **cross-attention**, in which a word about to be written
# finds the words it is made from.
#
# attention | who asks (queries) | who is asked (keys, values)
# ---|---|---
# in the encoder | source | source
# in the decoder, first | target so far | target so far
# in the decoder, second: cross-attention | target so far | source, as the memory
#
# It is the same class `MultiHead` all three times, each with parameters of its own. An encoder layer has two sub-layers, each wrapped in
# Add & Norm:

# %% tags=["hide-input"]
lesson.picture("encoder-layer")


# %% tags=["from-piece-7"]
from transduce.learn.build_it.pieces import EncoderLayer

# %% [markdown]
# A decoder layer has three sub-layers:

# %% tags=["hide-input"]
lesson.picture("decoder-layer")


# %% tags=["from-piece-8"]
from transduce.learn.build_it.pieces import DecoderLayer

# %% [markdown]
# The whole network is $N$ of each, with embeddings and positions in front. At the end the vector of each position is multiplied with every
# row of the target's embedding: those products are the logits. In the code, `src` are the ids of the source, `tgt_in` those of the target
# so far; `padding_mask` and `causal_mask` say who may look at whom (chapter 7).


# %% tags=["from-piece-10"]
from transduce.learn.build_it.pieces import Transformer

# %% [markdown]
# **Is it right?** Chapter 7 compares this network with the package's. That one was compared with `torch.nn.Transformer`:

# %% tags=["hide-input"]
ledger.settle("architecture-equals-torch", lesson.beside_torch())

# %% [markdown]
# **One batch by heart.** The cheapest test of a network and its training: sixteen pairs, over and over. If the loss does not go nearly to
# 0, something is not connected.

# %% tags=["hide-input"]
heart = lesson.by_heart()
ledger.settle("architecture-learns-a-batch-by-heart", heart)

# %% tags=["hide-input"]
lesson.by_heart_curve(heart)

# %% [markdown]
# **Token by token.** When the decoder writes, keys and values of earlier tokens do not change, since nobody looks ahead; so the package
# keeps them in a **cache** (the short code of chapter 9 does not):

# %% tags=["hide-input"]
ledger.settle("architecture-a-step-is-a-pass", lesson.steps())

# %% [markdown]
# **How large is it?** Attention has four matrices of $d_\text{model} \times d_\text{model}$; a decoder layer has two attentions. The
# feed-forward network has two of $d_\text{model} \times d_\text{ff}$.
#
# **Predict.** The paper's base model: $d_\text{model} = 512$, $d_\text{ff} = 2048$, six layers on each side, and one embedding of 37,000
# subwords for source and target. Which part has the most parameters? "A": embedding. "B": attention. "C": feed-forward.

# %%
my_largest_part = ...

# %% tags=["hide-input"]
size = lesson.size()
lesson.parameter_bars(size)

# %% tags=["hide-input"]
d = 512
reason = f"With d for d_model, attention: 6 · (1 + 2) · 4 d² = {72 * d * d / 1e6:.1f} million; feed-forward: 6 · 2 · 8 d² = {96 * d * d / 1e6:.1f}; embedding {37_000 * d / 1e6:.1f}."
lesson.predicted(my_largest_part, "C", reason)

# %% tags=["hide-input"]
ledger.settle("architecture-size-of-base", size)

# %% [markdown]
# **Exercises.**


# %%
def my_decoder_layer(x, memory, attend, look_at, feed_forward, norms):
    """1. Post-norm: attend(x) looks at the target's own past,
    look_at(x, memory) at the source; norms has three."""
    ...


check("architecture-decoder-layer", my_decoder_layer)

# %%
# 2. In cross-attention, where do queries, keys and values come from?
#    Three words, each "encoder" or "decoder".
my_sides = ...
check("architecture-who-asks", my_sides)


# %%
def my_layer_size(d_model, d_ff):
    """3. The number of parameters of one encoder layer, biases and norms included."""
    ...


check("architecture-layer-size", my_layer_size)

# %%
hint("architecture-layer-size")

# %% [markdown]
# **What people get wrong.** *"The decoder's first layer gets the encoder's first layer."* All decoder layers look at the same memory, that
# of the last encoder layer. *"It runs, so it is connected right."* Swapping encoder and decoder raises no error: the shapes fit ([one such
# case](https://github.com/keras-team/keras-io/issues/1968)). Test with a source and a target of different lengths.
#
# **Now write it:** steps 7 and 8 of [build_it](build_it.ipynb).
#
# ## 7 · Masks
#
# **Question.** In a batch, short sentences are filled up to the length of the longest; and in training, the decoder holds the very tokens
# it is to predict. What must be hidden from whom?

# %% tags=["hide-input"]
lesson.figure_one_map("self-attention", "masked attention", "cross-attention")

# %% [markdown]
# **Without it.** What fills up a sentence is a token without meaning: **padding**. Unless it is hidden, what comes out for a sentence
# depends on how long its *neighbors* in the batch are. And a position that may look at the next token of the target need not learn to
# predict it: it can copy. Training then looks like a triumph ([masks](masks.ipynb) shows what comes of it).
#
# **Predict.** A sentence of 3 words stands in a batch beside one of 30. With padding hidden, how much do its logits differ from those it
# gets alone? "A": not at all. "B": a little. "C": a lot.

# %%
my_padding = ...

# %% [markdown]
# If the future is hidden, *the* may look at itself alone, *cat* at *the* and itself, *sleeps* at all three. A hidden score becomes minus
# infinity, its weight 0, and the others still add up to 1:

# %% tags=["hide-input"]
lesson.picture("masks")

# %%
PAD, BEGIN, END = 0, 1, 2  # ids that are no tokens of a text


# %% tags=["from-piece-9"]
from transduce.learn.build_it.pieces import causal_mask, padding_mask

# %% [markdown]
# A **padding mask** hides *keys*, so it is made from the ids that are looked *at*: in cross-attention, the source's. A **causal mask** lets
# each position look at itself and at what came before. Here are all masks of a batch of two pairs; rows look at columns.

# %% tags=["hide-input"]
pairs = [("ein Hund rennt", "a dog"), ("ein großer Hund schläft tief", "a big dog sleeps")]
words, named = lesson.words_batch(pairs)
lesson.batch_masks(words, [named(row) for row in words.src], [named(row) for row in words.tgt_in])

# %% [markdown]
# Gray fills *columns*, never rows. Padding positions compute something that nobody reads; if their rows were hidden as well, the softmax
# would have nothing to share out: 0/0. And the target needs no padding mask: its padding stands on the right, in everybody's future.
#
# Now the network can run:

# %%
torch.manual_seed(1)
model = Transformer(20, 20, d_model=32, num_heads=4, d_ff=64, num_layers=2, dropout=0.1).double().eval()
src = torch.tensor([[5, 9, 7, END, PAD, PAD], [6, 3, 8, 11, 16, END]])
tgt_in = torch.tensor([[BEGIN, 8, 4, 6], [BEGIN, 7, 12, 3]])
logits = model(src, tgt_in)
print("source", tuple(src.shape), " target", tuple(tgt_in.shape), " logits", tuple(logits.shape))

# %% tags=["hide-input"]
shipped = lesson.shipped(model)
with torch.no_grad():
    ours, logits = shipped.logits(shipped(src, tgt_in)), logits.detach()
    alone = model(src[:1, :4], tgt_in[:1])
assert torch.allclose(ours, logits, atol=1e-6) and torch.allclose(alone, logits[:1], atol=1e-12)
print(f"the shipped network (its sinusoids are float32): {float((ours - logits).abs().max()):.0e} apart")
print(f"the first pair without its neighbor and its padding: {float((alone - logits[:1]).abs().max()):.0e} apart")

# %% tags=["hide-input"]
lesson.predicted(my_padding, "A", "A weight of exactly 0 times anything is 0; at most rounding is left.")

# %% [markdown]
# **Laws, not opinions.** No training is needed to check a mask. Padding and the order of the rows must change nothing. And the gradient of
# a position's logits with respect to a *later* token must be zero; not small, zero.

# %% tags=["hide-input"]
found = lesson.laws()
ledger.settle("architecture-padding-changes-nothing", found)

# %% tags=["hide-input"]
ledger.settle("architecture-batch-order-changes-nothing", found)

# %% tags=["hide-input"]
assert found.future_gradient == 0  # exactly
print("a target of six tokens: length of the gradient of each position's logits (rows) by each token (columns)")
print(found.by_future.numpy().round(1))

# %% [markdown]
# **Beware of dialects.** `mask` has opposite meanings within one library. Choose names that say what True means: `may_look`, `is_padding`.
#
# where | may look | hidden
# ---|---|---
# here; `F.scaled_dot_product_attention(attn_mask=)` | `True` | `False`
# `nn.MultiheadAttention`, `nn.Transformer` | `False` | `True`
# torch's also take numbers, added to the scores | $0$ | $-\infty$
#
# **Exercises.**


# %%
def my_additive_mask(may_look):
    """1. A mask (True: may look) in, numbers to add to the scores out."""
    ...


check("architecture-additive-mask", my_additive_mask)

# %%
# 2. Two pairs; sources of 7 and 4 tokens, targets of 3 and 5, as they stand
#    in the tensors; 4 heads. What is the shape of the weights of cross-attention,
#    as (batch, heads, ?, ?)?
my_shape = ...
check("architecture-cross-shape", my_shape)

# %%
hint("architecture-cross-shape")

# %% [markdown]
# **What people get wrong.** *"The target's padding mask goes into cross-attention."* Its keys are the source's; where both sides happen to
# be equally long, nothing complains. *"Zero the weights after the softmax."* Hidden keys then still count in the denominator, and rows no
# longer add up to 1.
#
# **Now write it:** steps 9 and 10 of [build_it](build_it.ipynb): the masks, and your whole network.
#
# ## 8 · Training
#
# **Question.** The network maps a source and the beginning of a target to logits for the next token. How does it learn from pairs of
# sentences?

# %% tags=["hide-input"]
lesson.figure_one_map("shifted right", "linear", "softmax", "embedding")

# %% [markdown]
# **Without it** an untrained network writes random tokens. Letting it write, then correcting it, starts badly: after one wrong word,
# everything it sees is its own mistake.
#
# So at every position the decoder is given the *right* tokens up to there, and has to name the next one. That is **teacher forcing**. Since
# the causal mask keeps each position from seeing ahead, all positions learn in one pass. The target goes in **shifted right** by one place,
# behind a begin symbol; the answers it has to give end with an end symbol:

# %% tags=["hide-input"]
lesson.picture("loss")


# %% tags=["from-piece-11"]
from transduce.learn.build_it.pieces import batch_of, loss_of

# %%
src, tgt_in, tgt_out = batch_of(lesson.PAIRS)  # two pairs of ids, of different lengths
print("tgt_in ", tgt_in.tolist(), "\ntgt_out", tgt_out.tolist())

# %% tags=["hide-input"]
random_logits = torch.randn(*tgt_out.shape, 10, generator=torch.Generator().manual_seed(3))
theirs = F.cross_entropy(random_logits.flatten(0, 1), tgt_out.flatten(), ignore_index=PAD)
assert torch.allclose(loss_of(random_logits, tgt_out), theirs, atol=1e-6)
print("loss_of = torch's cross_entropy, padding left out")

# %% [markdown]
# Read a column: the token in `tgt_in` is the last one the network knows, the one below it in `tgt_out` is what it has to name. The loss is
# averaged over real tokens.
#
# **Predict.** Someone forgets the shift and feeds in `tgt_out`, the very tokens asked for. "A": the loss stays high. "B": it goes to almost
# 0, and the network writes well. "C": it goes to almost 0, and the network writes nothing right.

# %%
my_shift_guess = ...

# %% tags=["hide-input"]
unshifted = lesson.without_shift()
lesson.unshifted(unshifted)

# %% tags=["hide-input"]
lesson.predicted(
    my_shift_guess,
    "C",
    "The answer is in its input, so it learns to copy; when it writes alone, there is nothing to copy. Even untrained it "
    "starts lower: the logits are products with the embedding, and that of a token with itself is the largest.",
)

# %% tags=["hide-input"]
ledger.settle("unshifted-targets-look-perfect", unshifted)

# %% [markdown]
# A test of one minute finds the mistake: *let the model write, and look.* (A missing causal mask looks the same; the gradients of chapter 7
# tell the two apart.)
#
# ### The training loop
#
# One step: compute the loss of a batch, let gradients flow back, move each parameter a little against its gradient. **Adam** is a rule for
# how far. It keeps a running average of each parameter's gradients, and of their squares, and divides the first by the root of the second:
# parameters with small but steady gradients move as fast as those with large ones. (`betas` say how slowly the averages forget; `eps`
# avoids a division by 0.) At first these averages rest on very little, so the learning rate rises from 0 over a **warm-up**, and falls
# later:


# %% tags=["from-piece-12"]
from transduce.learn.build_it.pieces import train

# %% [markdown]
# We train the network above, again to write sentences backward; *the cat sleeps* is not among those it learns from.

# %%
sentences = lesson.Sentences()
torch.manual_seed(1)
num_ids = sentences.num_ids
model = Transformer(num_ids, num_ids, d_model=64, num_heads=4, d_ff=128, num_layers=2, dropout=0.1)
losses = train(model, sentences.next_pairs, steps=300, learning_rate=3e-3, warmup_steps=40)

# %% tags=["hide-input"]
lesson.loss_curve(losses)

# %% [markdown]
# ### The recipe around it
#
# Asking for a probability of exactly 1 drives logits up without end. **Label smoothing** of 0.1 (section 5.4) takes 0.1 from the right
# token and spreads it evenly over all $n$ tokens: the right one gets $0.9 + 0.1/n$, each other $0.1/n$. The loss becomes the average of
# $-\ln p$ over all tokens, weighted with the probabilities asked for: above 0 even for a perfect model.

# %% tags=["hide-input"]
lesson.smoothed_target(3, 0.1, 8)

# %% [markdown]
# The paper's **schedule**, the learning rate at step $s$ with $w$ steps of warm-up, is
# $d_\text{model}^{-0.5} \cdot \min(s^{-0.5},\ s \cdot w^{-1.5})$: up in a straight line, then down as $1/\sqrt{s}$ (equation 3; with three
# other schedules for comparison).

# %% tags=["hide-input"]
lesson.schedules()

# %% [markdown]
# The paper puts pairs of similar length together. On English words and their sounds, that saves most of the padding:

# %% tags=["hide-input"]
found = lesson.batching()
lesson.padding(found)

# %% tags=["hide-input"]
ledger.settle("fixed-length-computes-padding", found)

# %% tags=["hide-input"]
ledger.settle("buckets-compute-tokens", found)

# %% [markdown]
# More: [training recipe](training_recipe.ipynb).
#
# **Exercises.**


# %%
def my_shift(target_ids):
    """1. (What goes in, what is asked for), of a target without begin (1) and end (2)."""
    ...


check("training-shift", my_shift)


# %%
def my_smoothed_target(right, label_smoothing, num_ids):
    """2. The probabilities asked for, as a list of num_ids numbers."""
    ...


check("training-smoothed-target", my_smoothed_target)


# %%
def my_rate(step, d_model, warmup_steps):
    """3. Equation 3."""
    ...


check("training-rate", my_rate)

# %% [markdown]
# **What people get wrong.** *"The loss is low, so it works."* You have just seen a network with a loss near 0 that could not write.
#
# **Now write it:** steps 11 and 12 of [build_it](build_it.ipynb).
#
# ## 9 · Decoding
#
# **Question.** The model gives probabilities for the next token. How do they become a sentence, and is it the best one?

# %% tags=["hide-input"]
lesson.figure_one_map("softmax", "shifted right", "masked attention")

# %% [markdown]
# **Without it** you have probabilities, and no sentence. The simplest way is **greedy decoding**: take the most probable token, append it
# to the input, ask again; what follows the end symbol is cut away.

# %% tags=["hide-input"]
lesson.picture("greedy-decode")


# %% tags=["from-piece-13"]
from transduce.learn.build_it.pieces import greedy_decode

# %%
model.eval()  # no dropout from here on
src, _, _ = batch_of([sentences.pair(sentence) for sentence in sentences.test])
outputs = greedy_decode(model, src, max_len=12)
for sentence, ids in list(zip(sentences.test, outputs, strict=True))[:4]:
    print(f"{sentence:32} -> {sentences.text(ids)}")

# %% tags=["hide-input"]
right = sum(ids == sentences.pair(sentence)[1] for sentence, ids in zip(sentences.test, outputs, strict=True))
print(f"{right} of {len(outputs)} sentences it never saw are right, word for word")

# %% [markdown]
# There it is: *sleeps cat the*, by a network, a training and a decoding of which you have seen every line.
#
# ### It has to live with what it wrote
#
# You stand on a ring of six places and are given twelve moves: left, right, right... Write down where you are after each. After one mistake
# you are in the wrong place, until a second one happens to undo it. A model that is *told* the right place before each move only has to
# find that one move in the list, by its position. It finds later ones less reliably.
#
# **Predict.** Told the truth, the model names most places right. Writing by itself, how many whole walks does it get right? "A": about as
# many. "B": far fewer. "C": more, since its mistakes cancel.

# %%
my_walks = ...

# %% tags=["hide-input"]
own = lesson.own_writing()
lesson.own_writing_curves(own)

# %% tags=["hide-input"]
lesson.predicted(
    my_walks,
    "B",
    f"All twelve must be right: even 0.9 to the power of 12 is 0.28. Whole walks right: {own.whole:.0%}. "
    f"Places right: {own.told:.0%} when told, {own.own:.0%} alone.",
)

# %% tags=["hide-input"]
ledger.settle("told-tokens-are-not-own-tokens", own)

# %% [markdown]
# Told or not, the same walks come out right: up to the first mistake, the model sees the same. So the gap comes from needing all twelve
# right; going on from its own mistakes costs only the distance between the curves. Accuracy under teacher forcing is no score for a model
# that has to write.
#
# ### Greedy is not best
#
# The most probable *sentence* has the largest product of probabilities. Greedy decoding may miss it: a good first token can lead nowhere
# good. **Beam search** keeps the best few beginnings (*hypotheses*) instead of one, extends each by every token, and again keeps the best
# few. One that ends is set aside; the best of those wins. On a toy model with only 364 possible outputs (up to five tokens of three kinds)
# we can score them all by the logarithm of their probability, the log-probability. How often does each search miss the best?

# %% tags=["hide-input"]
searched = lesson.searches()
lesson.search_errors(searched)

# %% tags=["hide-input"]
ledger.settle("greedy-search-misses", searched)

# %% tags=["hide-input"]
ledger.settle("beam-search-seldom-misses", searched)

# %% [markdown]
# ### And the most probable is not always good
#
# Every further token multiplies by a number below 1, so probability favors short outputs. Take a copying task in which each symbol may be
# written in two ways (65% and 35%), with a flaw that real data have, too: one target in twenty is missing. The most probable full output
# for 12 symbols has probability $0.95 \cdot 0.65^{12}$, about half a percent. The empty one has 5%.
#
# **Predict.** A wider beam will make the outputs... "A": better. "B": no different. "C": worse.

# %%
my_beam_guess = ...

# %% tags=["hide-input"]
by_length = lesson.lengths()
lesson.length_curves(by_length)

# %% tags=["hide-input"]
lesson.predicted(
    my_beam_guess,
    "C",
    "The search does nothing wrong: it finds the most probable output, which is empty. Greedy search never considers it: "
    "at the first token, the end symbol has 5%, another token more.",
)

# %% tags=["hide-input"]
ledger.settle("the-likeliest-answer-can-be-empty", by_length)

# %% [markdown]
# This is why the log-probability is divided by a function of the length before outputs are compared; as it is negative, long outputs gain.
# The paper's is $((5 + \text{length})/6)^\alpha$ with a **length penalty** of $\alpha = 0.6$, and a beam of 4 (section 6.1).
#
# **Exercises.**

# %%
# 1. 40 tokens, each right with probability 0.98, independently:
#    what share of outputs has no mistake?
my_share = ...
check("decoding-no-slip", my_share)


# %%
def my_beam(next_log_probs, beam_size, longest):
    """2. next_log_probs(ids) gives {token: log-probability}; 2 is the end.
    Returns the most probable ids, without the end;
    longest: tokens at most, the end included."""
    ...


check("decoding-beam", my_beam)


# %%
def my_score(log_prob, length, alpha):
    """3. The log-probability divided by ((5 + length) / 6)^alpha;
    length counts the end symbol."""
    ...


check("decoding-length-score", my_score)

# %% [markdown]
# **What people get wrong.** *"Beam search finds the best output."* Mostly a more probable one, which need not be better.
#
# **Now write it:** step 13 of [build_it](build_it.ipynb), and then teach your own Transformer to pronounce English.
#
# ## 10 · Why it matters
#
# **Question.** Before 2017, sequences were read by **recurrent networks**, such as the **GRU** (gated recurrent unit): one token after
# another, each step updating a single state that has to carry everything. Attention was an addition to them. Why did leaving out the
# recurrence make such a difference?

# %% tags=["hide-input"]
lesson.figure_one_map("all")

# %% [markdown]
# **Without the Transformer** many processors could not share the work on one sentence: each step waited for the one before. Reasons 1
# and 2 are the paper's (section 4); its scores (table 2) are the third.
#
# ### Reason 1: everything at once
#
# **Predict.** In training, source and target are known, but some operations must wait for others. For which network does the longest
# such chain grow with the sentence? "A": for both. "B": for the GRU alone. "C": for neither.

# %%
my_chain = ...

# %% tags=["hide-input"]
chains = lesson.chains()
lesson.chain_lengths(chains)

# %% tags=["hide-input"]
reason = (
    "The GRU has to finish token t before it can begin t + 1. Attention computes all tokens of a layer side by side."
)
lesson.predicted(my_chain, "B", reason)

# %% [markdown]
# The Transformer pays in another coin: every token looks at every other, so the *number* of products grows with the square of the length.
# But a GPU can do thousands of them at once.
#
# ### Reason 2: everything is one step away
#
# To carry something from the first token to the last, the GRU must pass it through every state in between, and the gradient must come back
# the same way. With attention it is one step, however far. How much of the gradient arrives, before any training?

# %% tags=["hide-input"]
gradients = lesson.gradients()
lesson.distances(gradients)

# %% [markdown]
# At two hundred tokens hardly anything of the GRU's gradient is left. It can still learn to remember ([measured](why_it_matters.ipynb)),
# but starts with almost no signal. A GRU *with attention*, the third curve, has no such trouble. So it is attention that solves the problem
# of distance, not leaving out the recurrence.
#
# ### Reason 3: quality
#
# English words and their pronunciation in **phonemes** (units of sound); three networks of the same size, each at its own learning rate.
# The figure shows recorded trainings, since each takes minutes.

# %% tags=["hide-input"]
lesson.quality_curves(lesson.quality_by_steps(ledger.path))

# %% [markdown]
# The Transformer starts behind the GRU with attention, which reads from left to right by design, and closes in as training goes on. How
# many percentage points more phonemes than the Transformer each gets wrong (minus: fewer; the second column is the mean of three starts,
# the figure shows one):
#
# network | after {claim:quality-beside-a-gru-with-attention.steps:,} steps | after four times as many
# ---|---|---
# GRU with attention | {claim:quality-beside-a-gru-with-attention:+.1f} | {claim:quality-beside-a-gru-with-attention.longer:+.1f}
# GRU | {claim:quality-beside-a-gru:+.1f} | {claim:quality-beside-a-gru.longer:+.1f}
#
# At this size, then, attention makes the difference, and the recurrence does no harm. The paper's result, 28.4 **BLEU** from English to
# German (a score that counts phrases shared with a human translation), comes from millions of sentences and eight GPUs. There, reason 1
# decides how much can be learned at all, which is why almost everything since is built on the Transformer.
#
# **What people get wrong.** *"Transformers are parallel."* In training. When they write, each token waits for the one before. *"Attention
# has no limits on length."* Positions beyond those of training are unknown to it ([positions](positions.ipynb)).
#
# ## 11 · Your own model, on a real task
#
# **Question.** How is an English word pronounced? *Tough, though, through*: no rule gets it right.

# %% tags=["hide-input"]
lesson.figure_one_map("all")

# %% [markdown]
# **Without a toolkit**, an interrupted training is lost, and nobody knows how far to trust a score. We use this package as it ships, on the
# Carnegie Mellon Pronouncing Dictionary: some 125,000 entries to learn from, about four minutes on two cores. Here are the settings, as
# `transduce train settings.toml` takes them; all others keep their defaults (label smoothing is 0.1):

# %%
SETTINGS = """
[data]
dataset = "cmudict"

[tokenizer]
source = "characters"      # t r a n s d u c e
target = "words"           # T R AE N Z D UW S
joint = false              # letters and phonemes have an embedding each

[model]
d_model = 128
d_ff = 256
num_heads = 4
num_encoder_layers = 3
num_decoder_layers = 3
dropout = 0.0              # each word is seen about once: nothing to guard against
norm_first = true          # pre-norm (chapter 5)
positions = "rotary"       # turns queries and keys instead (see "positions")

[optim]
schedule = "linear"        # the learning rate, after its warm-up, falls in a straight line
learning_rate = 0.002
warmup_steps = 100
max_grad_norm = 1.0        # longer gradients are shortened to this length
ema_decay = 0.99           # keeps a moving average of the parameters, and uses it

[training]
steps = 2800
batch_tokens = 512         # tokens in a batch
validate_every = 700       # steps; then it is tried on words kept from training

[validation]
metrics = ["word_error", "per"]   # percent of words wrong, and of phonemes (PER)
group_sources = true       # of several pronunciations, any is right
max_pairs = 150            # words at each of these tries; the final score takes all
"""

# %% [markdown]
# **Predict.** What percentage of words that it has never seen will it get entirely right?

# %%
my_words = ...

# %%
pronouncer = lesson.train_to_pronounce(SETTINGS)

# %% tags=["hide-input"]
word_errors, phoneme_errors = pronouncer.scores()
print(f"{word_errors}, in percent of {word_errors.num_segments:,} unseen words")
print(f"{phoneme_errors}, in percent of their phonemes")

# %% tags=["hide-input"]
right, right_phonemes = 100 - word_errors.value, 100 - phoneme_errors.value
reason = f"That is the percentage of words entirely right. Of single phonemes, {right_phonemes:.0f}% are: a long word has many."
lesson.predicted(my_words, right, reason)

# %% [markdown]
# That is an honest score: unseen words, written by the model itself. The brackets hold a 95% interval: if this were repeated with other
# words, 19 of 20 such intervals would contain the true score. Now words that are in no dictionary, with the three best outputs for each and
# their log-probabilities, divided for length (chapter 9):

# %%
predictor = pronouncer.predictor
new_words = ["transduce", "blorptastic", "snizzlewick", "grokking", "vaswanian"]
for word, best in zip(new_words, predictor.predict_n_best(new_words, 3), strict=True):
    print(f"{word:12}", "   ".join(f"{output.text} ({output.score:.2f})" for output in best))

# %% [markdown]
# And where did it look while it wrote (in the last cross-attention, averaged over heads)? Each row is a phoneme just written, its dark cell
# the letter of the next one.

# %% tags=["hide-input"]
lesson.looked_at(predictor, "transduce")

# %% [markdown]
# ### Your own pairs
#
# Any text in, any text out: one pair a line, a tab between source and target. `fit` chooses the settings and holds
# out a test part.
#
# ```sh
# transduce fit pairs.tsv --minutes 15                    # learns, and says how good it is
# transduce fit pairs.tsv --minutes 15 --resume           # goes on after an interruption
# echo "a line" | transduce predict runs/pairs            # --n-best 3, --json, ...
# transduce explain runs/pairs "a line" -o page.html      # attention and search, as a page
# transduce export runs/pairs --format onnx -o exported   # for other programs (ONNX)
# ```
#
# ## What you now know
#
# - Attention is a soft look-up by content; heads look for several things; order must be put in (1 to 3).
# - A layer is attention, then a small network for each token; each is added to what was there, and normalized (4, 5).
# - The encoder reads all at once, the decoder writes from left to right; masks make the difference (6, 7).
# - Training tells the model every earlier right token; writing, it has only its own (8, 9).
# - Recurrence could not work on a whole sentence at once (10).
#
# **Next:** [build_it](build_it.ipynb), to write it all yourself. Then the paper again, with the repository's `docs/PAPER.md` beside it, and
# [break it](break_it.ipynb): ten networks, each with a hidden bug.
#
# ## Further exercises
#
# 1. Train chapter 11 with `num_heads = 1`, then with `d_ff = 32`. Which hurts more?
# 2. Learn the other way around, phonemes to letters. Which is harder?
# 3. Make pairs of dates ("3 March 2024", "2024-03-03") and `fit` them. How many until 1,000 new ones are all right?
# 4. Which words does the model of chapter 11 get wrong although it is very sure, and what do they share?

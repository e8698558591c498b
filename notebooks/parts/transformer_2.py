# %% [markdown]
# ## 5 · Layer normalisation and residual connections
#
# **Question.** Attention and the feed-forward network are each wrapped in the same four words: "Add & Norm". What does
# the addition do, what does the norm do, and does their order matter?
#
# Short answer: the addition leaves a way from the first layer to the last on which nothing is lost; the norm keeps the
# size of numbers known; and their order decides what a gradient meets on its way back.

# %%
import torch
import torch.nn.functional as F
from torch import nn

from transduce.learn import Ledger, check, hint, solution, source_of
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

ledger = Ledger.load()

# %% [markdown]
# **Predict.** A token's vector is `[1, 0, 0, 0]`. Its layer normalisation has mean 0 and mean square 1. What is its
# first number?

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
# The sum runs over channels of one token: neither other tokens, nor other sentences, nor padding have a say. Around
# each sub-layer $f$ (attention or feed-forward) stands one of
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
# **The trap.** `x.std()` divides by $d - 1$ (Bessel's correction), and many hand-written norms put $\epsilon$ outside
# the root. The code runs and trains. With the weights of another implementation it is wrong, and at small $d$ by much:

# %%
one = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
right = F.layer_norm(one, (4,), eps=1e-5)
bessel = (one - one.mean()) / (one.std() + 1e-5)
print(
    f"right {right[0]:.3f}, with d - 1 {bessel[0]:.3f}" + ("" if my_guess_first is ... else f"; you {my_guess_first}")
)
assert f"{right[0]:.3f} {bessel[0]:.3f}" == "1.732 1.500"

# %% [markdown]
# Now the whole wrapper, as installed, and by hand. Dropout (chapter 8) sits on the sub-layer's output, before the
# addition; here it is 0.

# %%
source_of(AddAndNorm)

# %%
sublayer = nn.Linear(8, 8).double()
for norm_first in (False, True):
    shipped = AddAndNorm(8, 0.0, "layer", norm_first).double()
    by_hand = x + sublayer(shipped.norm(x)) if norm_first else shipped.norm(x + sublayer(x))
    assert torch.allclose(shipped(x, sublayer), by_hand, atol=1e-12)

# %% [markdown]
# **One difference, followed to its end.** Under post-norm the sum itself is normalised, again and again: whatever
# leaves a layer has known size, but the way through passes every norm. Under pre-norm nothing touches the sum. So what
# leaves the last layer is what came in, plus what each sub-layer has said:
#
# $$x_\text{final} = x_0 + \sum_{k=1}^{2N} f_k\big(\mathrm{LayerNorm}(x_{k-1})\big), \qquad
#   \frac{\partial x_\text{final}}{\partial x_0} = I + \dots$$
#
# with $N$ layers of two sub-layers $f_k$ each, and $x_k$ the sum after $k$ of them. The sum is called the **residual
# stream**; sub-layers read from it and write to it. The identity $I$ is the way on which a gradient arrives
# undiminished, however deep the stack. One norm closes the stack, since nothing else has.
#
# **Experiment.** Hooks on an encoder of six layers collect what every sub-layer writes:

# %%
found = norms.stream()
ledger.settle("the-residual-stream-is-a-sum", found)

# %%
norm_pictures.stream_bars(found)

# %% [markdown]
# **Picture.** Bars: what each sub-layer of the untrained encoder adds. Line: the sum so far. It grows, about like the
# root of the number of terms, for vectors that have nothing to do with each other are nearly at right angles. So a
# late sub-layer changes the direction of the stream less than an early one. Under post-norm the line would be flat
# at 1.
#
# What becomes of a stack without the addition, why post-norm wants warm-up, and what the gradients look like: twelve
# layers are trained in [norm and depth](norm_and_depth.ipynb).
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
# **3.** The input of a pre-norm encoder of twelve layers, and what each sub-layer adds, are independent, with mean 0
# and root mean square 1. What is the root mean square of the stream at the end?

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
# ## 6 · Encoder and decoder
#
# **Question.** All parts are there. How do they become *two* stacks, how do the two talk, and how do we know that the
# whole is right before a single hour of training?
#
# The encoder reads the source, once, and leaves one vector for each of its tokens: the **memory**. The decoder writes
# the target, and at every layer it may ask that memory.

# %% [markdown]
# **Predict.** The base model has $d_\text{model} = 512$, $d_\text{ff} = 2048$, six layers on each side and some 37,000
# subwords that both languages share. Where are most of its parameters: in `"embedding"`, `"attention"`, or
# `"feed-forward"`? And how many million are there in all?

# %%
my_guess_where, my_guess_millions = ..., ...

# %% [markdown]
# **Maths.** With $\mathrm{AN}_f(x) = \mathrm{LayerNorm}(x + f(x))$ for the Add & Norm of chapter 5, one layer of each
# side is
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
# No sub-layer changes the shape of what it gets. That is why they can be stacked, and why one can be added or taken
# out without touching the others.
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
# **Equality with somebody else's.** Our own code agreeing with our own code proves little. So: `torch.nn.Transformer`,
# which other people wrote, gets the same weights and the same padded batch. That takes new names for the parameters,
# and masks turned round (its `True` means "hidden"; chapter 7):

# %%
source_of(architecture.torch_transformer, architecture.hidden_by_torch)

# %%
beside = architecture.beside_torch()
ledger.settle("architecture-equals-torch", beside)

# %% [markdown]
# Post-norm and pre-norm both, three encoder and two decoder layers, every weight moved away from where it starts: gains
# that are all 1 and biases that are all 0 would hide mistakes.
#
# A surprise on the way. Left as it comes, `torch.nn.Transformer` has one more norm after each stack, in post-norm, too.
# Figure 1 has none. With fresh gains that changes hardly anything (to normalise twice is to normalise once), so it is
# easily missed; with trained ones it does:

# %%
print(f"with torch's closing norms: up to {beside.with_torchs_closing_norm:.2g} apart")
assert beside.with_torchs_closing_norm > 1e6 * beside.largest_difference

# %% [markdown]
# **Experiment: one batch by heart.** The cheapest test of a whole network *and* of the code that trains it. Sixteen
# pairs, again and again. If the loss does not go to zero here, no amount of data will help: something is not connected.

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
# By heart is not understood: of new sources it knows next to nothing. The test says that everything *can* learn, not
# that anything worth knowing was learnt. That takes fresh data (chapter 8).
#
# **Picture.** The three attentions of that network, on one row of its batch (last layers, mean over heads). Symbols are
# numbers; 1 begins, 2 ends. Look at the shapes of the three maps, and at the empty corner of the second:

# %%
row = max(range(16), key=lambda row: int((heart.batch.src[row] != PAD).sum()))
source, target = ([str(i) for i in ids[row].tolist() if i != PAD] for ids in (heart.batch.src, heart.batch.tgt_in))
architecture_pictures.three_attentions(heart, row, source, target)

# %% [markdown]
# Had it learnt to reverse, the map on the right would be a diagonal from the bottom left to the top right, or near to
# it. It has learnt sixteen rows instead, and a network that can tell them apart by anything need not look at the right
# symbol. (What maps can and cannot say: [looking inside](looking_inside.ipynb).)
#
# **Step by step.** In training the decoder sees the whole target at once. In use there is no target yet: it writes one
# token, and that token is its next input. Computing everything anew for each token would be wasteful; keys and values
# of earlier tokens do not change, since nobody looks ahead. So they are kept: the **cache**. That both ways are the
# same function is a thing to prove, not to hope:

# %%
stepwise = architecture.steps()
ledger.settle("architecture-a-step-is-a-pass", stepwise)

# %%
source_of(DecoderLayer.step)

# %% [markdown]
# **How large is it?** The base model, counted in the shipped network (on a device without memory, so it costs nothing),
# and by formula. With $V$ subwords, $d = d_\text{model}$ and $f = d_\text{ff}$:
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
print(f"{V * d:,} + {encoder_size:,} + {decoder_size:,} = {size.base:,}")
if my_guess_millions is not ...:
    print(f"your guess: {my_guess_millions} million, most of them in: {my_guess_where}")

# %%
architecture_pictures.parameter_bars(size)

# %%
ledger.settle("architecture-size-of-base", size)

# %%
print(f"65 million in all would need a vocabulary of {size.tokens_for_65_million:,.0f}")

# %% [markdown]
# "About 37,000 tokens" (section 5.1) may well leave room for that; the paper does not say. What holds for any
# vocabulary: the sinusoids add nothing, heads add nothing, and the output matrix is the embedding again (section 3.4).
# In untied networks the same table is paid for up to three times.
#
# **Exercises.**
#
# **1.** A decoder layer, post-norm. `attend(x)` looks at the target's own past, `look_at(x, memory)` at the source;
# `norms` has three.


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
#   example the two inputs stood in the wrong order, and its answers repeated the input (keras-team/keras-io#1997,
#   #1968). Give source and target different lengths in tests, and look at what it writes.

# %% [markdown]
# ## 7 · Masks for sequence-to-sequence
#
# **Question.** A batch is a rectangle, sentences are not; and in training the decoder holds the very answer it is to
# give. What must be hidden from whom, and how does one *prove* that nothing leaks?
#
# **Predict.** A source of 3 words stands in a batch beside one of 30. By how much do its scores change, compared with
# being alone? `"not at all"`, `"a little"`, or `"a lot"`?

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
# **A mask belongs to the keys.** It is made of the ids of those who are looked *at*: so cross-attention takes the
# source's padding.

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
# The same word, `mask`, with opposite meanings, within one library. Invert at the border, once, and name things by what
# `True` says: `may_look`, `is_padding`.
#
# **Experiment: three laws.** Masks are either right or wrong, so there is no need of training to see it. The whole
# network with random weights, in float64:
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
print(f"each row alone: {found.by_mates:.0e} apart" + ("" if my_guess_padding is ... else f"; you: {my_guess_padding}"))
print(found.by_future.numpy().round(1))

# %% [markdown]
# Rows are scores, columns are inputs, each number is the length of a derivative; above the diagonal stand true zeros.
# (Padding is "nothing" up to rounding, for sums of another length are added up in another order. Zero times anything is
# exact, so the future is nothing at all.)
#
# What happens *without* each mask is told in [masks](masks.ipynb): without the causal one, training looks like a
# triumph, and the network cannot write a sentence.
#
# **Exercises.**
#
# **1.** Our mask in (`True`: may look), numbers to add to the scores out.


# %%
def my_additive_mask(may_look): ...


check("architecture-additive-mask", my_additive_mask)

# %% [markdown]
# **2.** Two pairs; sources of 7 and 4 tokens, targets of 3 and 5; 4 heads. What is the shape of the weights of
# cross-attention, as (batch, heads, ?, ?)?

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

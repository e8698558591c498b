# %% [markdown]
# # 5 · Layer normalisation and residual connections
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
from transduce.learn.experiments import norms
from transduce.learn.pictures import norms as norm_pictures
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

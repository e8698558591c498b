# %% [markdown]
# # Norm and depth: twelve layers, with parts taken out
#
# Chapter 5 of [the main notebook](transformer.ipynb) introduces layer normalisation and residual connections.
# Shallow networks forgive much. So here are **twelve** layers, and every arrangement has to show what it
# can do: without additions; with the norm after them (post-norm, the paper's) or before (pre-norm); with a warm-up of
# the learning rate and without.
#
# **Some of what we expected did not come out.** It is told as it came; the ledger has what was written down before.

# %%
import torch

from transduce.learn import Ledger, check, guessed, hint, solution, source_of, surgery
from transduce.learn.norm_and_depth import experiments as norms
from transduce.learn.norm_and_depth import pictures
from transduce.model.residual import AddAndNorm, build_norm

ledger = Ledger.load()

# %% [markdown]
# ## 1. The question, and the task
#
# Where must the norm stand for a deep network to learn, and what has the learning rate to do with it?
#
# The task could not be simpler: *copy* two to six symbols out of ten. The network is narrow
# ($d_\text{model} = 32$) and deep on one side: twelve encoder layers, one decoder layer. All trainings see the same
# batches and have the same highest learning rate. And there is a line to measure against: whoever sees nothing of the
# source can still know how often symbols and ends occur, and has a certain loss at best. **On that line, nothing
# arrives from the encoder.**

# %%
print(f"loss of one who does not see the source: {norms.blind_loss(norms.deep_task()):.3f} nats a token")
source_of(AddAndNorm)

# %% [markdown]
# **Maths.** One sub-layer $f$ (attention or feed-forward), and the derivative of what leaves it by what came in:
#
# | | forward | derivative |
# |---|---|---|
# | nothing added | $\mathrm{LN}(f(x))$ | $J_\mathrm{LN} \, J_f$ |
# | post-norm (paper, section 3.1) | $\mathrm{LN}(x + f(x))$ | $J_\mathrm{LN} \, (I + J_f)$ |
# | pre-norm (Xiong et al. 2020) | $x + f(\mathrm{LN}(x))$ | $I + J_f \, J_\mathrm{LN}$ |
#
# | symbol | meaning |
# |---|---|
# | $\mathrm{LN}$ | layer normalisation (chapter 5) |
# | $J_f$, $J_\mathrm{LN}$ | matrices of derivatives of $f$, of the norm |
# | $I$ | the identity: what comes in goes out, and so does its gradient |
#
# A stack of twelve layers multiplies 24 such factors. Without the addition every factor is a random matrix, and there
# is no way round it. Under post-norm there is a way round $f$, but none round the norms. Under pre-norm the product,
# multiplied out, holds one $I$ that has met nothing at all.
#
# ## 2. Without the addition
#
# **Predict.** In all encoder layers the addition is taken out; the norm stays. Same parameters, same
# batches. Where does the loss end: near 0, in between, or on the line of those who see nothing? (Post-norm has a warm-up
# here, pre-norm has none: each as it does best.)

# %%
my_guess_without = ...

# %% [markdown]
# A subclass does it, of four lines:

# %%
source_of(surgery.NormWithoutAdd)

# %%
added = norms.residuals()
pictures.residual_curves(added)

# %%
ledger.settle("depth-without-residuals-learns-late", added)

# %%
ledger.settle("depth-with-residuals-learns", added)

# %%
for norm, run in added.with_them.items():
    print(
        f"{norm}-norm, with residual connections: {run.final_loss:.2f} nats a token, {run.right:.0%} of answers right"
    )
for norm, run in added.without.items():
    ends = f"{run.final_loss:.2f} nats a token, {run.right:.0%} of answers right"
    print(f"{norm}-norm, without: {ends}{guessed(my_guess_without)}")

# %% [markdown]
# The parameters are all there. What is missing is a path for the signal; some of the source arrives after many more steps. Without additions each attention *replaces* every vector by a mixture
# of all of them, and after a few such mixtures all positions hold nearly the same vector (Dong et al. 2021 call it
# rank collapse). Here is how alike the vectors at different positions of a source are, layer by layer, before any
# training: the mean cosine of all pairs, 1 if they point the same way.

# %%
alike = norms.alikeness()
pictures.alikeness_lines(alike)

# %%
ledger.settle("depth-without-residuals-all-positions-become-one", alike)

# %%
for (norm, additions), cosines in alike.cosines.items():
    print(f"{norm}-norm {additions} residual connections: {cosines[-1]:.4f} after twelve layers")

# %% [markdown]
# Look at the solid line of post-norm, too. The addition delays the collapse, and twelve layers are enough to get
# there all the same: each norm scales the sum back, and with it what is left of the token itself. Under pre-norm that
# is never scaled down. Keep this picture in mind for what comes.
#
# ## 3. Post-norm against pre-norm, with and without warm-up
#
# Now the addition is back, and the norm moves. A warm-up lets the learning rate rise from zero, here over the first
# 30 % of the steps; without it, the first step is made at the full rate. The paper has post-norm and a warm-up of
# 4,000 steps (section 5.3), and does not say why.
#
# **Predict.** Four trainings. Put them in order of the final loss, lowest first: `"post with"`, `"post without"`,
# `"pre with"`, `"pre without"`.

# %%
my_order = ...

# %%
found = norms.warm_up()
pictures.warm_up_curves(found)

# %%
ledger.settle("depth-post-norm-without-warm-up-is-behind", found)

# %%
ledger.settle("depth-pre-norm-needs-no-warm-up", found)

# %%
ledger.settle("depth-post-norm-with-a-warm-up", found)

# %%
order = sorted(found.runs, key=lambda kind: found.loss(*kind))
for norm, warm in order:
    right = sum(run.right for run in found.runs[norm, warm]) / len(found.runs[norm, warm])
    print(f"{norm} {warm}: {found.loss(norm, warm):.2f} nats a token, {right:.0%} of answers right")
print(f"so the order is {', '.join(f'{norm} {warm}' for norm, warm in order)}{guessed(my_order)}")

# %% [markdown]
# Each thin line is a second seed. Pre-norm and post-norm are far further apart than seeds are. The warm-up matters less:
# it helps post-norm by a quarter of what post-norm is behind, some three times the distance between two seeds, and
# pre-norm learns with it or without.
#
# **That is not what we had expected.** A warm-up was to rescue post-norm, and in this time it does not; pre-norm was to
# be better off without one, and is not. (It was, as long as our schedule without a warm-up reached a higher peak: see
# that what is compared differs in one thing.)
#
# ## 4. Stuck, or slow?
#
# A short run cannot tell. So both post-norm networks get two and a half times the steps. (Not four trainings, for
# the sake of your time: pre-norm has nothing left to learn.)
#
# **Predict.** Which of the two ends lower, and does either come near pre-norm?

# %%
my_guess_patience = ...

# %%
patient = norms.patience()
pictures.patience_curves(patient)

# %%
ledger.settle("depth-patience-needs-the-warm-up", patient)

# %%
right = f"without warm-up {patient.cold.right:.0%}, with {patient.warm.right:.0%}"
print(f"answers right: {right}{guessed(my_guess_patience)}")

# %% [markdown]
# So nobody is stuck: both cross the line of those who see nothing and go on falling. Without a warm-up post-norm is ahead
# at first, is overtaken after some hundred and fifty steps, and stays behind. Both are slow: the paper's recipe is
# post-norm *and* warm-up *and* time. (One seed, one rate, one width. What is shown is that the order of two operations
# decides how much care the rate needs.)
#
# ## 5. What the gradient meets
#
# Xiong et al. (2020) looked at untrained networks, and so do we: one batch, one backward pass, no step. Left, how long
# the gradient of each layer's feed-forward matrices is; right, how large the vectors are that pass through.
#
# **Predict.** Under post-norm: does the first encoder layer or the last one get the longer gradient?

# %%
my_guess_gradient = ...

# %%
start = norms.at_initialisation()
pictures.initialisation_lines(start)

# %%
ledger.settle("depth-post-norm-gradients-grow-towards-the-output", start)

# %%
ledger.settle("depth-pre-norm-gradients-do-not", start)

# %%
ledger.settle("depth-the-pre-norm-stream-grows", start)

# %% [markdown]
# Under post-norm the layers nearest the output have the longest gradients, as Xiong et al. say, but in this small
# encoder by much less than we had thought: the first layers are *not* starved. And Adam divides every gradient by its
# own size anyway. So "the gradient vanishes" is no good explanation of section 3. The picture of section 2 is a better
# one, though we have not proved it: at the start, a post-norm encoder of this depth hands the decoder nearly the same
# vector for every position. There is little in it to learn from, and large first steps spoil that little. Liu et al.
# (2020) also looked for the cause in vanishing gradients, and did not find it there: they blame the heavy weight that
# post-norm gives to each sub-layer's own output, which turns small changes of the parameters into large changes of the
# result.
#
# Under pre-norm the stream grows with each addition (right), so the same step changes a late vector relatively less.
# That is a warm-up built into the network; and its price is that late layers of very deep pre-norm networks have
# little to say.
#
# ## 6. Does it have to be *layer* normalisation?
#
# RMSNorm (Zhang and Sennrich 2019) leaves out mean and bias, and divides by the root mean square alone:
#
# $$\mathrm{RMSNorm}(x)_i = g_i \, \frac{x_i}{\sqrt{\tfrac1d \sum_j x_j^2 + \epsilon}}$$
#
# ($g_i$: a trained gain for each of the $d$ channels of the token's vector $x$; $\epsilon = 10^{-5}$.)

# %%
x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1
by_hand = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
assert torch.allclose(build_norm(8, "rms").double()(x), by_hand, atol=1e-12)

# %%
kinds = norms.kinds()
print(f"LayerNorm {kinds.layer.final_loss:.3f} nats a token, RMSNorm {kinds.rms.final_loss:.3f}")
ledger.settle("depth-rms-norm-does-as-well", kinds)

# %% [markdown]
# ## Exercises
#
# Two of them stand in chapter 5, too; if you have done them there, they are done.
#
# **1.** Layer normalisation without gain and bias: `x` of shape (tokens, channels), $\epsilon = 10^{-5}$.


# %%
def my_layer_norm(x): ...


check("norms-layer-norm", my_layer_norm)

# %% [markdown]
# **2.** Pre-norm, in one line.


# %%
def my_pre_norm(x, sublayer, norm): ...


check("norms-pre-norm", my_pre_norm)

# %% [markdown]
# **3.** The input of a pre-norm encoder of twelve layers, and what each sub-layer adds, are independent, with mean 0
# and root mean square 1. What is the root mean square of the stream at the end, before the final norm? Compare it with the right picture of
# section 5.

# %%
my_size = ...
check("norms-growth", my_size)

# %%
hint("norms-growth")

# %%
solution("norms-layer-norm")

# %% [markdown]
# ## Paper against code
#
# | paper | here |
# |---|---|
# | post-norm (section 3.1) | the default of `base` and `big`; `norm_first = true` for pre-norm |
# | no norm at the end of a stack | the same; pre-norm has one, since nothing else has normalised its sum |
# | warm-up of 4,000 steps (section 5.3) | the default of `OptimConfig` |
# | LayerNorm | the default; `norm = "rms"` |
#
# The authors' own code moved to pre-norm soon after the paper; explanations that show the paper's text beside pre-norm
# code have confused readers since (harvardnlp/annotated-transformer#92). And torch's first pre-norm was wrong
# (pytorch/pytorch#61165).
#
# ## What people get wrong
#
# - **"Residual connections are there against vanishing gradients, and that is all."** They also keep positions apart on
#   the way *forward* (section 2).
# - **"Post-norm does not train."** It trained the paper's models. It needs a warm-up and time, the more the deeper.
# - **"Warm-up is a must."** For post-norm. Pre-norm learns with one and without, here.
# - **"Pre-norm is better."** It is easier. Where both train well, post-norm has often been the better one in the end
#   (Liu et al. 2020 on translation); six layers, as in the paper, are not deep.
#
# Next: [training_recipe](training_recipe.ipynb) for the other parts of the recipe.

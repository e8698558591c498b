# %% [markdown]
# # Norm and depth: twelve layers, with parts removed
#
# Chapter 5 of [the main notebook](transformer.ipynb) introduces layer normalization and residual connections. Shallow
# networks hide the effect of both, so here we use **twelve** layers. We try each arrangement: no residual
# connections; the norm after the addition (post-norm, as in the paper) or before the sub-layer (pre-norm); with and
# without a learning-rate warm-up.
#
# **Some results were not what we expected.** We report them as they came. The boxes say what we had predicted.

# %%
import torch

from transduce.learn import Ledger, check, guessed, hint, solution, source_of, surgery
from transduce.learn.norm_and_depth import experiments as norms
from transduce.learn.norm_and_depth import pictures
from transduce.model.residual import AddAndNorm, build_norm

ledger = Ledger.load()

# %% [markdown]
# ## 1. The question and the task
#
# Where must the norm be placed so that a deep network learns, and what does the learning rate have to do with it?
#
# The task is as simple as possible: *copy* two to six symbols, of ten kinds. The network is narrow ($d_\text{model} =
# 32$) and deep on one side: twelve encoder layers, one decoder layer. All trainings use the same batches and the same
# peak learning rate. We also have a reference line. A model that sees nothing of the source can still know how often
# symbols and end symbols occur, and this gives it a lowest possible loss. **A loss on that line means that nothing
# arrives from the encoder.**

# %%
print(f"lowest loss without seeing the source: {norms.blind_loss(norms.deep_task()):.3f} nats per token")
source_of(AddAndNorm)

# %% [markdown]
# **Math.** Let $f$ be one sub-layer (attention or feed-forward). The derivative is that of the output with respect to
# the input:
#
# | | forward | derivative |
# |---|---|---|
# | nothing added | $\mathrm{LN}(f(x))$ | $J_\mathrm{LN} \, J_f$ |
# | post-norm (paper, section 3.1) | $\mathrm{LN}(x + f(x))$ | $J_\mathrm{LN} \, (I + J_f)$ |
# | pre-norm (Xiong et al. 2020) | $x + f(\mathrm{LN}(x))$ | $I + J_f \, J_\mathrm{LN}$ |
#
# | symbol | meaning |
# |---|---|
# | $\mathrm{LN}$ | layer normalization (chapter 5) |
# | $J_f$, $J_\mathrm{LN}$ | matrices of derivatives of $f$ and of the norm |
# | $I$ | the identity: the input passes through unchanged, and so does its gradient |
#
# A stack of twelve layers multiplies 24 such factors. Without the addition, every factor is a random matrix, and
# nothing bypasses it. With post-norm, the signal can bypass every $f$, but none of the norms. With pre-norm,
# expanding the product gives a term $I$ that passes through neither sub-layers nor norms.
#
# ## 2. Without the addition
#
# **Predict.** We remove the addition from all encoder layers and keep the norm. The parameters and batches stay the
# same. Where does the loss end: near 0, somewhere in between, or on the line of a model that sees no source?
# (Post-norm has a warm-up here and pre-norm has none, since each works best that way.)

# %%
my_guess_without = ...

# %% [markdown]
# A subclass of four lines removes the addition:

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
        f"{norm}-norm, with residual connections: {run.final_loss:.2f} nats per token, {run.right:.0%} of outputs right"
    )
for norm, run in added.without.items():
    ends = f"{run.final_loss:.2f} nats per token, {run.right:.0%} of outputs right"
    print(f"{norm}-norm, without: {ends}{guessed(my_guess_without)}")

# %% [markdown]
# All the parameters are still there. What is missing is a path for the signal; only after many more steps does some
# of the source arrive. Without additions, each attention *replaces* every vector by a mixture of all vectors. After a
# few such mixtures, all positions hold nearly the same vector (Dong et al. 2021 call this rank collapse). The next
# plot shows, before any training, how similar the vectors at different positions of a source are after each layer. It
# shows the mean cosine of the angle between two vectors, over all pairs; 1 means that they point the same way.

# %%
alike = norms.alikeness()
pictures.alikeness_lines(alike)

# %%
ledger.settle("depth-without-residuals-all-positions-become-one", alike)

# %%
for (norm, additions), cosines in alike.cosines.items():
    print(f"{norm}-norm {additions} residual connections: {cosines[-1]:.4f} after twelve layers")

# %% [markdown]
# Look at the solid post-norm line, too. The addition delays the collapse, but twelve layers are enough to get there
# anyway: each norm scales the sum back, and with it what is left of the token itself. In pre-norm nothing ever scales
# that down. Keep this plot in mind for the next sections.
#
# ## 3. Post-norm against pre-norm, with and without warm-up
#
# Now we put the addition back and move the norm. With a warm-up, the learning rate rises from zero, here over the
# first 30% of the steps. Without it, the first step uses the full rate. The paper uses post-norm and a warm-up of
# 4,000 steps (section 5.3), and does not say why.
#
# **Predict.** There are four trainings. Order them by their final loss, lowest first: `"post with"`, `"post
# without"`, `"pre with"`, `"pre without"`.

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
    print(f"{norm} {warm}: {found.loss(norm, warm):.2f} nats per token, {right:.0%} of outputs right")
print(f"order, lowest loss first: {', '.join(f'{norm} {warm}' for norm, warm in order)}{guessed(my_order)}")

# %% [markdown]
# The thin lines are a second random seed. The gap between pre-norm and post-norm is far larger than the gap between
# seeds. The warm-up matters less. It closes a quarter of post-norm's gap to pre-norm, about three times the
# difference between the two seeds. Pre-norm learns with it or without it.
#
# **This is not what we had expected.** We thought a warm-up would rescue post-norm, and in this time it does not. We
# also thought pre-norm would be better without one, and it is not. (At first it was, but only because our schedule
# without a warm-up reached a higher peak rate. Make sure that what you compare differs in only one thing.)
#
# ## 4. Stuck, or slow?
#
# A short run cannot tell. So we give both post-norm networks two and a half times as many steps. (We save you the
# time of training pre-norm for longer: it has nothing left to learn.)
#
# **Predict.** Which of the two ends with the lower loss, and does either come near pre-norm?

# %%
my_guess_patience = ...

# %%
patient = norms.patience()
pictures.patience_curves(patient)

# %%
ledger.settle("depth-patience-needs-the-warm-up", patient)

# %%
right = f"without warm-up {patient.cold.right:.0%}, with {patient.warm.right:.0%}"
print(f"outputs right: {right}{guessed(my_guess_patience)}")

# %% [markdown]
# So neither network is stuck: both go below the line of a model that sees no source, and keep falling. Without a
# warm-up, post-norm is ahead at first. It is overtaken after about 150 steps and stays behind. Both are slow: the
# paper's recipe is post-norm *and* warm-up *and* time. (This is one seed, one rate, one width. It shows that the
# order of two operations decides how carefully you must choose the learning rate.)
#
# ## 5. Gradients before training
#
# Xiong et al. (2020) looked at untrained networks, and so do we: one batch, one backward pass, no training step. The
# left plot shows the length of the gradient of each layer's feed-forward matrices. The right plot shows the size of
# the vectors that pass from layer to layer.
#
# **Predict.** With post-norm, which gets the longer gradient: the first encoder layer or the last?

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
# With post-norm, the layers nearest the output have the longest gradients, as Xiong et al. say. But in this small
# encoder the ratio is much smaller than we had thought: the first layers do get enough gradient. Besides, Adam
# divides every gradient by its own size. So "the gradient vanishes" does not explain section 3. The plot of section 2
# explains it better, though we have not proved this: at the start, a post-norm encoder of this depth gives the
# decoder nearly the same vector for every position. There is little in it to learn from, and large first steps spoil
# even that. Liu et al. (2020) also looked for the cause in vanishing gradients and did not find it there. They found
# that post-norm gives a large weight to each sub-layer's own output, so small changes of the parameters become large
# changes of the result.
#
# With pre-norm, the residual stream grows with each addition (right plot), so a training step of the same size
# changes a late vector relatively less. This acts like a built-in warm-up. The price is that the late layers of very
# deep pre-norm networks contribute little.
#
# ## 6. Does it have to be *layer* normalization?
#
# RMSNorm (Zhang and Sennrich 2019) subtracts no mean and has no bias. It only divides by the root mean square:
#
# $$\mathrm{RMSNorm}(x)_i = g_i \, \frac{x_i}{\sqrt{\tfrac1d \sum_j x_j^2 + \epsilon}}$$
#
# ($g_i$ is a learned gain, a factor for each of the $d$ channels of the token's vector $x$; $\epsilon = 10^{-5}$.)

# %%
x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1
by_hand = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
assert torch.allclose(build_norm(8, "rms").double()(x), by_hand, atol=1e-12)

# %%
kinds = norms.kinds()
print(f"LayerNorm {kinds.layer.final_loss:.3f} nats per token, RMSNorm {kinds.rms.final_loss:.3f}")
ledger.settle("depth-rms-norm-does-as-well", kinds)

# %% [markdown]
# ## Exercises
#
# Two of these are also in chapter 5. If you have solved them there, you can skip them.
#
# **1.** Layer normalization without gain and bias: `x` has shape (tokens, channels), $\epsilon = 10^{-5}$.


# %%
def my_layer_norm(x): ...


check("norms-layer-norm", my_layer_norm)

# %% [markdown]
# **2.** Pre-norm, in one line.


# %%
def my_pre_norm(x, sublayer, norm): ...


check("norms-pre-norm", my_pre_norm)

# %% [markdown]
# **3.** A pre-norm encoder has twelve layers. Its input and what each sub-layer adds are independent vectors with
# mean 0 and root mean square 1. What is the root mean square of the stream at the end, before the final norm? Compare
# it with the right plot of section 5.

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
# | no norm at the end of a stack | the same; pre-norm has one, because nothing else has normalized its sum |
# | warm-up of 4,000 steps (section 5.3) | the default of `OptimConfig` |
# | LayerNorm | the default; `norm = "rms"` for RMSNorm |
#
# The authors' own code moved to pre-norm soon after the paper. Tutorials that show the paper's text next to pre-norm
# code have confused readers ever since (harvardnlp/annotated-transformer#92). And torch's first version of pre-norm
# was wrong (pytorch/pytorch#61165).
#
# ## What people get wrong
#
# - **"Residual connections only prevent vanishing gradients."** They also keep positions apart on the *forward* pass
#   (section 2).
# - **"Post-norm does not train."** It trained the paper's models. It needs a warm-up and time, and more of both the
#   deeper it is.
# - **"Warm-up is a must."** For post-norm, yes. Pre-norm learns with it and without it, at least here.
# - **"Pre-norm is better."** It is easier to train. Where both train well, post-norm has often ended up better (Liu
#   et al. 2020, on translation); six layers, as in the paper, are not deep.
#
# Next: [training_recipe](training_recipe.ipynb) covers the other parts of the recipe.

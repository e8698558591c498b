# %% [markdown]
# # The training recipe
#
# Chapter 8 of [the main notebook](transformer.ipynb) shows the loss, the shifted target and one update of the
# weights. This notebook covers the rest of the recipe, one experiment per ingredient: warm-up, label smoothing,
# learning-rate schedule, batches computed in parts, initialization, Adam's beta2, averaged weights, tied embeddings,
# dropout. At the end comes a clinic: six curves of our own trainings, five of them with a defect, for you to
# diagnose.
#
# Most experiments learn to pronounce short English words (CMUdict, a pronouncing dictionary). This is real data: the
# same letters can be pronounced in several ways, so no model can be certain. The network is small (2 + 2 layers of
# width 64), and the package's own `TrainStep` trains it. Results of small experiments hold for this size and this
# data. Where they contradict the paper we say so, and claim no more than that.

# %%
from statistics import mean

import torch

from transduce.learn import Ledger, check, guessed, source_of
from transduce.learn.training_recipe import batches, clinic, pictures
from transduce.learn.training_recipe import experiments as recipe
from transduce.training.loss import cross_entropy_sum
from transduce.training.optim import update_average

torch.set_num_threads(1)  # matrices this small do not profit from several threads
ledger = Ledger.load()

# %% [markdown]
# ## 1 · Warm-up
#
# **Question.** Why does the learning-rate schedule (equation 3) start with 4,000 small steps? **Predict**: we train a
# network with the paper's post-norm (4 + 4 layers; the paper has 6 + 6) at a high rate from the first step on. Does
# it (a) learn as well, (b) learn worse, (c) overflow?

# %%
my_guess = ...  # "a", "b" or "c"

# %%
warmed = recipe.warm_up()
pictures.warm_up(warmed)

# %%
print(f"(b): without a warm-up, the loss ends {warmed.excess:.2f} nats per token higher{guessed(my_guess)}")
ledger.settle("a-warm-up-makes-a-high-rate-possible", warmed)

# %% [markdown]
# So a warm-up makes a higher rate possible. At a lower rate, this network learns as well without one. The reason is
# not settled ([norm_and_depth](norm_and_depth.ipynb), section 5). What is known: in its first steps, Adam moves every
# weight by about the learning rate, whatever the size of the gradient. At a high rate these steps are long and nearly
# arbitrary. A warm-up makes them short.
#
# **What people get wrong.** Warm-up is counted in *updates* of the weights. One popular annotated implementation
# advances its schedule after every micro-batch (a part of a batch), but updates the weights only after every tenth.
# Its warm-up is set to 3,000. How many updates is that?

# %%
my_updates = ...
check("recipe-warm-up-in-updates", my_updates)

# %% [markdown]
# ## 2 · Label smoothing
#
# **Question.** Section 5.4 says that smoothing of 0.1 "hurts perplexity, as the model learns to be more unsure, but
# improves accuracy and BLEU score". Are both true here?
#
# **Math.** With smoothing, the loss asks for the probabilities $q_i = (1 - \varepsilon)[i = y] + \varepsilon / V$
# instead of certainty. ($q_i$ is the probability asked of id $i$, $y$ is the correct id, $V$ the number of ids,
# $\varepsilon = 0.1$, and $[i = y]$ is 1 if the two are equal, else 0.) The best logits are then finite: the correct
# one lies $\log((1 - \varepsilon) V / \varepsilon + 1)$ above the others, and being more certain than that does not
# pay.
#
# **Predict** two effects of smoothing on words the model has never seen, both measured *without* smoothing:

# %%
my_nll_guess, my_score_guess = ..., ...  # nats per phoneme and percentage points of correct words that it adds

# %%
smoothed = recipe.smoothing()
print(
    "correct words gained, in percentage points, seed by seed:",
    ", ".join(f"{gain:+.1f}" for gain in smoothed.score_gains),
    end="",
)
print(guessed(my_nll_guess, my_score_guess))
pictures.smoothing(smoothed)

# %%
ledger.settle("smoothing-costs-likelihood", smoothed)

# %%
ledger.settle("smoothing-and-the-score", smoothed)

# %% [markdown]
# The first half of the paper's sentence is visible at once. As for the second half, look at the seeds before you
# believe anything: the mean of the three is smaller than the difference between seeds, so it shows no effect. The
# paper measured its gain on millions of sentences, after days of training. There, models grow overconfident; our
# network sees each word about once and has no time for that.
#
# ## 3 · One change at a time
#
# **Question.** Which of these choices matter at this size?
#
# * the schedule of the learning rate;
# * Adam's beta2, which says how slowly its running average of squared gradients forgets (the paper uses 0.98, Adam's
#   default is 0.999);
# * one matrix shared by target embeddings and output ("tied", section 3.4);
# * the initialization (the paper says nothing about it).
#
# **Predict** the worst change.

# %%
my_guess = ...

# %%
chosen = recipe.choices()
for name, outcomes in chosen.outcomes.items():
    print(f"{name:28} {mean(found.nll for found in outcomes):.3f} nats per phoneme", end="   ")
    print("seeds:", ", ".join(f"{found.nll:.3f}" for found in outcomes))
worst = max(chosen.outcomes, key=lambda name: mean(found.nll for found in chosen.outcomes[name]))
print(f"worst: {worst}{guessed(my_guess)}")
pictures.choices(chosen)

# %% [markdown]
# Two dots fall on the same side of zero by chance half of the time. Believe only effects larger than the difference
# between the two baseline seeds. A separate output matrix did *better* here than the shared one of section 3.4 (it
# also has more parameters).
#
# The last row is the one to remember. Torch initializes an `nn.Embedding` with numbers of variance 1. The Transformer
# multiplies embeddings by $\sqrt{d_{model}}$ and uses the same matrix before the softmax. So the embeddings drown out
# the positions, and the first logits are many times too large. The package starts with $N(0, 1/d_{model})$, which has
# variance 1 after the factor:

# %%
source_of(recipe.build)

# %%
ledger.settle("embeddings-need-a-small-start", chosen)

# %% [markdown]
# ## 4 · Batches in parts
#
# **Question.** If a batch does not fit into memory, we compute it in parts and add up the gradients. Is that the same
# as one batch? **Naive version**: take the mean loss of each part, then the mean of these means.
#
# **Math.** Let part $k$ have $n_k$ tokens and the summed loss $S_k$. The loss of the whole batch is $\sum_k S_k /
# \sum_k n_k$. The mean of means is $\frac{1}{K} \sum_k S_k / n_k$, in which a token of a small part counts more. In
# general the two are equal only if all $n_k$ are.

# %%
parts = batches.accumulation()
print(f"tokens in the two parts: {parts.token_counts[0]:,} and {parts.token_counts[1]:,}")
print(f"in the mean of means, a token of the smaller part counts {parts.weight_of_a_token:.1f} times as much")

# %%
ledger.settle("a-mean-of-means-is-another-gradient", parts)

# %%
ledger.settle("accumulation-is-one-batch", parts)

# %% [markdown]
# For this reason the package's loss returns a sum and a count, and `TrainStep` divides once, over all parts and all
# processes:

# %%
hidden, weight = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
targets = torch.tensor([[5, 6, 2], [3, 2, 0]])
whole, whole_count = cross_entropy_sum(hidden, weight, targets, pad_id=0)
rows = [cross_entropy_sum(hidden[k : k + 1], weight, targets[k : k + 1], pad_id=0) for k in (0, 1)]
assert torch.isclose(sum(loss for loss, _ in rows), whole) and sum(count for _, count in rows) == whole_count


# %%
def my_mean_loss(sums, counts):
    """The mean loss of a batch that came in parts, from the summed losses and the numbers of tokens of the parts."""
    ...


check("recipe-mean-loss", my_mean_loss)

# %% [markdown]
# ## 5 · Averaged weights
#
# **Question.** The paper averages its last checkpoints, the saved weights (section 6.1). Our `ema_decay` keeps a
# moving average of the weights during training instead, which is a departure from the paper. How much does it gain,
# and when? **Predict**: does it gain more at a constant learning rate, or at a rate that falls to zero?

# %%
my_guess = ...

# %%
averaged = recipe.averaging()
print(f"constant rate: {averaged.gain_at_constant_rate:+.3f} nats per phoneme gained")
print(f"falling rate:  {averaged.gain_at_falling_rate:+.3f} nats per phoneme gained{guessed(my_guess)}")
ledger.settle("averaged-weights-are-better", averaged)

# %% [markdown]
# At a constant, high rate, the weights jump around the lowest point of a valley of the loss. Their average lies
# nearer to that point, so its loss is lower. Two things remove this gain. A rate that falls to zero ends the jumping.
# And while the weights still move in one direction, as they do at the lower rate, their average lags behind and is
# worse.

# %%
source_of(update_average)


# %%
def my_average(average, current, decay): ...


check("recipe-moving-average", my_average)

# %% [markdown]
# ## 6 · Overfitting and dropout
#
# **Question.** A network passes many times over a few hundred words. What happens to the loss on these words, and to
# the loss on new ones? What does dropout change (section 5.4: on the output of each sub-layer and on the embeddings)?

# %%
fitted = recipe.over_fitting()
pictures.over_fitting(fitted)

# %%
ledger.settle("dropout-delays-over-fitting", fitted)

# %% [markdown]
# Without dropout, the network learns the words by heart. The loss on new words turns around and rises, because the
# model becomes *certain* of wrong things. The remedies are more data, stopping at the lowest point
# (`training.patience`), dropout, or a smaller model. Dropout slows down learning. As long as nothing overfits, it
# costs more than it gains: after few steps, at a lower rate, or if each example is seen about once, as in chapter 11
# of the main notebook.
#
# **Paper against code.** Dropout is where the paper puts it and nowhere else: not on attention weights, and not
# inside the feed-forward network.
#
# ## 7 · The loss-curve clinic
#
# Here are six trainings of a small network that learns to reverse sequences of ten kinds of symbols (one of the six
# is deeper than the others). Blue: the loss as that training computed it. Red: the loss on fresh rows, computed
# correctly. Gray, below: the length of the gradient. The dotted line is $\log 10$, the loss of guessing one of ten
# symbols.
#
# One training is **healthy**. The others: **overfit** (the same 32 rows again and again), **no warm-up** (a deep
# post-norm network), **padding in the loss** (it counts as a token), **shuffled targets** (each source got its
# neighbor's target), **rate too high**. Which is which?

# %%
patients = clinic.clinic()
pictures.clinic(patients)

# %%
my_diagnoses = ...  # {"A": "healthy", "B": ...}; use the names in bold above
check("recipe-clinic", my_diagnoses)

# %% [markdown]
# What to look at, in this order:
#
# 1. **Is there a gap** between blue and red, and when does it begin?
# 2. **Where is a plateau**: at the loss of guessing, or below it?
# 3. **How long are the gradients?** On a plateau, long gradients mean that the training still pushes hard without
#    getting anywhere. Short ones mean that it has arrived or is stuck.
# 4. And always: what does the model *write*? Two curves can look alike and mean different things; outputs rarely do.
#
# **What people get wrong.** *"My loss is lower than yours."* Over which tokens? Padding is easy to predict, so a loss
# that counts it looks good. And with label smoothing, the minimized loss has a floor above zero: compare losses
# without smoothing.

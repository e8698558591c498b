# %% [markdown]
# # The training recipe
#
# Chapter 8 of [the flagship](transformer.ipynb) shows the loss, the shift and one update. Here is the rest of the
# recipe, each ingredient settled
# by an experiment: warm-up, label smoothing, schedule, batches in parts, the random start, Adam's beta2, averaged
# weights, tied embeddings, dropout.
# At the end, a clinic: six curves of our own trainings, five of them ill, for you to diagnose.
#
# Most experiments learn the pronunciation of short English words (CMUdict): real data, in which the same letters are
# said in several ways, so that no
# model can be sure. The network is small, 2 + 2 layers of width 64, and trained by the shipped `TrainStep`. Small
# experiments have small
# truths: what is measured here holds for this size and this data, and where it contradicts the paper we say so, and
# no more.

# %%
from statistics import mean

import torch

from transduce.learn import Ledger, check, guessed, source_of
from transduce.learn.training_recipe import batches, clinic, pictures
from transduce.learn.training_recipe import experiments as recipe
from transduce.training.loss import cross_entropy_sum
from transduce.training.optim import update_average

torch.set_num_threads(1)  # matrices this small are not worth sharing between threads
ledger = Ledger.load()

# %% [markdown]
# ## 1 · Warm-up
#
# **Question.** Why does equation 3 begin with 4,000 gentle steps? **Predict**: a network with the paper's post-norm (4 + 4 layers here, 6 + 6
# in the paper) is trained at a high rate from its first step on. Does it (a) learn as well, (b) learn worse, (c) overflow?

# %%
my_guess = ...  # "a", "b" or "c"

# %%
warmed = recipe.warm_up()
pictures.warm_up(warmed)

# %%
print(f"(b): without it, it ends {warmed.excess:.2f} nats a token higher{guessed(my_guess)}")
ledger.settle("a-warm-up-makes-a-high-rate-possible", warmed)

# %% [markdown]
# So the warm-up buys a higher rate; at a lower one this network learns as well without it. Why is not settled
# ([norm_and_depth](norm_and_depth.ipynb), section 5). What is known: in its first steps Adam moves every weight by about the learning rate,
# whatever the size of the gradient. At a high rate these steps are long, and nearly arbitrary. A warm-up makes them short.
#
# **What people get wrong.** Warm-up is counted in *updates*. A popular annotated implementation moves its schedule on
# after every micro-batch, and updates the weights after every tenth. Its warm-up of 3,000 is then, in updates:

# %%
my_updates = ...
check("recipe-warm-up-in-updates", my_updates)

# %% [markdown]
# ## 2 · Label smoothing
#
# **Question.** Section 5.4: smoothing of 0.1 "hurts perplexity, as the model learns to be more unsure, but improves
# accuracy and BLEU score".
# Both? **Maths.** The loss asks for $q_i = (1 - \varepsilon)[i = y] + \varepsilon / V$ instead of certainty. The best
# logits are then finite: the right one
# lies $\log((1 - \varepsilon) V / \varepsilon + 1)$ above the others, and no gain is left in being surer.
# ($q_i$ is the probability asked of id $i$, $y$ the right id, $V$ the number of ids, $\varepsilon = 0.1$, and $[i = y]$ is 1
# if they are equal, else 0.) **Predict**, for words it has never seen, both measured *without* smoothing:

# %%
my_nll_guess, my_score_guess = ..., ...  # nats per phoneme that smoothing adds; points of right words that it adds

# %%
smoothed = recipe.smoothing()
print("right words gained, seed by seed:", ", ".join(f"{gain:+.1f}" for gain in smoothed.score_gains), end="")
print(guessed(my_nll_guess, my_score_guess))
pictures.smoothing(smoothed)

# %%
ledger.settle("smoothing-costs-likelihood", smoothed)

# %%
ledger.settle("smoothing-and-the-score", smoothed)

# %% [markdown]
# The first half of the sentence is seen at once. Look at the seeds before you believe anything of the second: a mean
# of three that is smaller than what
# one seed differs from the next is no effect. The paper's gain was measured on millions of sentences over days of
# training, where models grow
# over-confident; our network sees each word about once and has no time for that.
#
# ## 3 · One change at a time
#
# **Question.** Which of these choices matter at this size: the schedule, beta2 of Adam (the paper says 0.98, Adam's
# own default is 0.999), a shared
# matrix for target embeddings and output (section 3.4), the random start (the paper is silent)? **Predict** the worst
# one.

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
# Two dots fall on one side of zero by chance half of the time: believe only what is larger than the distance between the
# two baselines. An output matrix of its own did *better* here than the shared one of section 3.4 (it also has more
# parameters). The last row is the one to remember. Torch starts an `nn.Embedding` with numbers
# of variance 1. The Transformer multiplies embeddings by $\sqrt{d_{model}}$ and uses the same matrix before the
# softmax, so positions drown in the
# embeddings, and the first logits are many times too large. The shipped start, $N(0, 1/d_{model})$, has unit variance
# after the factor:

# %%
source_of(recipe.build)

# %%
ledger.settle("embeddings-need-a-small-start", chosen)

# %% [markdown]
# ## 4 · Batches in parts
#
# **Question.** A batch that does not fit into memory is computed in parts, and the gradients are added up. Is that
# the same as one batch? **Naive
# version**: take the mean loss of each part, and the mean of these means.
#
# **Maths.** With part $k$ of $n_k$ tokens and summed loss $S_k$, the loss of the whole is $\sum_k S_k / \sum_k n_k$.
# The mean of means is
# $\frac{1}{K} \sum_k S_k / n_k$: a token in a small part counts for more. They are equal only if all $n_k$ are.

# %%
parts = batches.accumulation()
print(f"tokens in the two parts: {parts.token_counts[0]:,} and {parts.token_counts[1]:,}")
print(f"in the mean of means, a token of the smaller one counts {parts.weight_of_a_token:.1f} times as much")

# %%
ledger.settle("a-mean-of-means-is-another-gradient", parts)

# %%
ledger.settle("accumulation-is-one-batch", parts)

# %% [markdown]
# That is why the shipped loss returns a sum and a count, and `TrainStep` divides once, over all parts and all
# processes:

# %%
hidden, weight = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
targets = torch.tensor([[5, 6, 2], [3, 2, 0]])
whole, whole_count = cross_entropy_sum(hidden, weight, targets, pad_id=0)
rows = [cross_entropy_sum(hidden[k : k + 1], weight, targets[k : k + 1], pad_id=0) for k in (0, 1)]
assert torch.isclose(sum(loss for loss, _ in rows), whole) and sum(count for _, count in rows) == whole_count


# %%
def my_mean_loss(sums, counts):
    """The loss of one batch that came in parts: their summed losses and numbers of tokens."""
    ...


check("recipe-mean-loss", my_mean_loss)

# %% [markdown]
# ## 5 · Averaged weights
#
# **Question.** The paper averages its last checkpoints (section 6.1). `ema_decay` keeps a moving average during
# training instead, a departure. What does it
# gain, and when? **Predict**: more at a constant learning rate, or at one that falls to zero?

# %%
my_guess = ...

# %%
averaged = recipe.averaging()
print(f"constant rate: {averaged.gain_at_constant_rate:+.3f} nats per phoneme gained")
print(f"falling rate:  {averaged.gain_at_falling_rate:+.3f} nats per phoneme gained{guessed(my_guess)}")
ledger.settle("averaged-weights-are-better", averaged)

# %% [markdown]
# At a constant, high rate the weights jitter around the bottom of a valley, and the average of places around it lies lower than the places
# themselves. Two things take that away. A rate that falls to zero ends the jitter by itself. And while the weights are still traveling, as
# they are at the lower rate, the average lags behind them, and is worse.

# %%
source_of(update_average)


# %%
def my_average(average, current, decay): ...


check("recipe-moving-average", my_average)

# %% [markdown]
# ## 6 · Over-fitting and dropout
#
# **Question.** Many passes over a few hundred words: what do the loss on these words and the loss on new ones do?
# What does dropout
# (section 5.4: on the output of each sub-layer and on the embeddings) change?

# %%
fitted = recipe.over_fitting()
pictures.over_fitting(fitted)

# %%
ledger.settle("dropout-delays-over-fitting", fitted)

# %% [markdown]
# Without dropout the words are learned by heart, and the loss on new ones turns around and rises: the model becomes *sure* of wrong things.
# The cures: more data, stopping at the lowest point (`training.patience`), dropout, a smaller model. Dropout slows learning down: as long as
# nothing is over-fitted (fewer steps, a lower rate, or data seen about once, as in chapter 11 of the main notebook), it costs more than it gives.
#
# **Paper against code.** Dropout stands where the paper puts it and nowhere else: not on attention weights, not
# inside the feed-forward network.
#
# ## 7 · The loss-curve clinic
#
# Six trainings of a small network (one of them deeper than the others) that learns to write ten symbols backwards. Blue: the loss as that training
# computed it. Red: the loss on fresh rows,
# computed as it should be. Grey, below: the length of the gradient. The dotted line is $\log 10$, guessing one of ten
# symbols.
#
# One patient is **healthy**. The others: **over-fit** (the same 32 rows again and again), **no warm-up** (a deep
# post-norm network), **padding in the
# loss** (it counts as a token), **shuffled targets** (each source got its neighbour's answer), **rate too high**. Who
# is who?

# %%
patients = clinic.clinic()
pictures.clinic(patients)

# %%
my_diagnoses = ...  # {"A": "healthy", "B": ...}; the names are those in bold above
check("recipe-clinic", my_diagnoses)

# %% [markdown]
# What to look at, in this order: **Is there a gap** between blue and red, and since when? **Where does a plateau
# lie**: at the loss of guessing, or below? **How
# long are gradients?** A plateau with long ones is fighting something, one with short ones has arrived, or is stuck.
# And always: what does the model
# *write*? Two curves can look alike and mean different things; answers seldom do.
#
# **What people get wrong.** *"My loss is lower than yours."* Of which tokens? Padding that counts is easy to predict,
# and makes any loss look good. With
# smoothing the loss that is minimised has a floor above zero: compare unsmoothed ones.

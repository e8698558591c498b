# %% [markdown]
# ## 8 · Training
#
# **Question.** A model that maps a source and the beginning of an answer to the next token: how does it learn from
# pairs?
# Short answer: it is told every right token but the one it has to name, at all positions at once. The recipe around
# that (how fast,
# how smooth, how averaged) has a notebook of its own, with an experiment for each part:
# [training_recipe](training_recipe.ipynb).

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

ledger = Ledger.load()

# %% [markdown]
# ### Teacher forcing and the shift
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
# Training makes this sum large. **Teacher forcing**: the tokens *before* position $t$ are the right ones, whatever
# the model would have
# written. So all positions are computed in one pass, and the causal mask (chapter 7) keeps each from seeing what it
# has to name.
# What goes *in* is therefore the target moved right by one place, with a begin symbol in front. In the package this
# shift is made
# in one place only:

# %%
data = recipe.words(1_500, 60)
batch = collate(data.train, [0, 700, 1_400])
for name in ("tgt_in", "tgt_out"):
    print(name)
    for row in getattr(batch, name).tolist():
        print("  ", row, " ".join(data.tokenizer.target_tokens(row)))

# %% [markdown]
# Read a column: the token in `tgt_in` is what the model knows last, the token below it in `tgt_out` is what it has to
# name.
# Padding is 0, begin is 1, end is 2. In a batch each row of `tgt_out` is padded at its end, and padding counts for
# nothing.
#
# **Predict.** Suppose somebody forgets the shift, and gives `tgt_out` as the input as well. What will the training
# loss be after a few
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
# The lower curve is the broken model. It has learnt to copy its input, the answer, and when it writes for itself
# there is no
# answer to copy. It is the single most common bug in training code, because everything that is logged looks
# wonderful. The test that
# finds it costs a minute: **let the model write, and look.**


# %%
def my_shift(target_ids):
    """(what goes in, what is asked for), of a target without begin (1) and end (2)."""
    ...


check("training-shift", my_shift)

# %% [markdown]
# ### The loss, smoothed
#
# **Maths.** With $V$ tokens, and $q$ the distribution that is asked for at one position, the loss of this position is
# $-\sum_{i=1}^{V} q_i \log p_i$. Label smoothing of $\varepsilon$ (section 5.4, $\varepsilon = 0.1$) asks for a
# little of everything:
# $q_i = (1 - \varepsilon)\,[i = y_t] + \varepsilon / V$.

# %%
decoding_pictures.smoothed_target(3, 0.1, 8)

# %% [markdown]
# **Naive version and equality.** The shipped loss never holds all logits at once; it is the same number as six lines,
# and as torch's:

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
# ### The learning rate of equation 3
#
# $$lrate = d_{model}^{-0.5} \cdot \min(step^{-0.5},\; step \cdot warmup^{-1.5})$$
#
# It rises in a straight line for `warmup` steps and then falls as $1/\sqrt{step}$. The two terms are equal at `step =
# warmup`: that is
# the peak, $(d_{model} \cdot warmup)^{-0.5}$. For the base model that is 7·10⁻⁴.

# %%
assert math.isclose(inverse_sqrt_rate(4000, 512, 4000), (512 * 4000) ** -0.5)
decoding_pictures.schedules()


# %%
def my_rate(step, d_model, warmup_steps): ...


check("training-rate", my_rate)

# %% [markdown]
# ### Batches by tokens
#
# A batch is a rectangle, and its short rows are filled up with padding that is computed for nothing. The paper puts
# pairs of like length
# together and counts a batch in tokens (section 5.1). How much does that save, for words of English and their
# phonemes?
# **Predict** the share of padding if every pair is padded to the longest one of the corpus.

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
# ### One update
#
# Everything that changes weights is in one class. This is how it learns from a batch and how it updates, as
# installed:

# %%
source_of(TrainStep._learn_from, TrainStep._update)

# %% [markdown]
# **Paper against code.** Adam's betas and epsilon, the schedule, smoothing and dropout are the paper's by default.
# The shipped loss ranges over
# the ids that occur in targets, the paper's over the joint vocabulary. Batches are bounded by pairs times the longest
# side, padding included.
# Gradient clipping and a moving average of the weights are ours, and off by default.
#
# **What people get wrong.** *"The loss is low, so it works."* You have just seen a loss of nearly zero that did not.
# *"Accuracy during training
# is the accuracy of the model."* That is the next chapter.
#
# ## 9 · Decoding
#
# **Question.** The model gives probabilities of the next token. How do they become an answer, and is it the best one?
#
# ### It has to live with what it wrote
#
# The task: steps to the right or left on a ring of six places; the answer is the places passed. Each is the one
# before, plus or minus one. Told
# the right place before, a model needs one sign to name the next. After a wrong turn of its own, all that follows is
# off.
#
# **Predict.** If it names most tokens rightly when it is told those before: what share of whole answers does it write
# without a slip?

# %%
my_guess = ...  # a share, such as 0.5

# %%
own = decoding.own_writing()
decoding_pictures.own_writing(own, None if my_guess is ... else my_guess)

# %%
ledger.settle("told-tokens-are-not-own-tokens", own)

# %% [markdown]
# So **teacher-forced accuracy is not a score.** It answers "how good is the next token, after a perfect beginning?",
# and there is no perfect
# beginning when the model writes. BLEU of teacher-forced tokens has been published as BLEU, too: it is a number of
# something else ([real_translation](real_translation.ipynb) has both).

# %%
my_share = ...  # 40 tokens, each right with probability 0.98, independently: share of answers without a slip
check("decoding-no-slip", my_share)

# %% [markdown]
# ### All the answers there are
#
# The likeliest answer is the one with the largest product of probabilities. To take the likeliest *token* at each
# step, **greedy search**,
# need not find it: a good first token may lead nowhere good. On a vocabulary of three symbols and answers of at most
# five, we can simply score all
# 364 of them. The model below was shown, for each of its sources, eight right answers of different probabilities.

# %%
searched = decoding.searches()
source = searched.sources[5]
every = decoding.all_answers(decoding.SEARCH_SYMBOLS, decoding.SEARCH_LONGEST)
ranked = decoding.score_all(searched.model, source, every)
print(f"{len(every)} answers have {sum(math.exp(answer.log_prob) for answer in ranked):.1%} of the probability")
for answer in ranked[:4]:
    print(f"{decoding_pictures.symbols(answer.ids):12} {math.exp(answer.log_prob):.3f}")

# %% [markdown]
# **Beam search** keeps the best few beginnings instead of one. **Naive version**, a full pass of the network for each
# token:


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
# **Equality** with the shipped search, which keeps keys and values (chapter 6) and computes one new token at each
# step:

# %%
for beam_size in (1, 2, 4):
    fast_ones = decoding.search(searched.model, searched.sources[:6], beam_size=beam_size, most_tokens=12)
    for one, hypothesis in zip(searched.sources[:6], fast_ones, strict=True):
        log_prob, ids = naive_beam(searched.model, one, beam_size, 12)
        assert ids[:-1] == hypothesis.ids and abs(log_prob - hypothesis.log_prob) < 1e-4
print("the same answers, with the same log-probabilities")

# %% [markdown]
# Beside the truth of all 364, what do searches miss? A miss is a **search error**: the model thinks better of another
# answer. (A *model* error is
# an answer that is likely and wrong; no search mends that.) **Predict** for how many sources greedy search misses.

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
# ### Drawing instead of searching
#
# **Sampling** draws each token by its probability. Many draws give back the model's own distribution; a temperature
# below 1 sharpens it, above 1
# flattens it. Greedy search is the limit at 0.

# %%
drawn = decoding.draws(searched.model, source, number=2_000, most_tokens=12, temperature=1.0)
name = decoding_pictures.symbols(source)
decoding_pictures.answers(ranked, drawn, searched.in_training[5], f"“{name}”", most=10)

# %% [markdown]
# ### The likeliest answer can be no answer
#
# Each further token multiplies by a number below 1, so probability favours short answers. Take copies in which each
# symbol may be written in two
# ways (65 % and 35 %), and data with a fault that real data have: one target in twenty is missing. The likeliest full
# answer to 12 symbols has
# $0.95 \cdot 0.65^{12}$, about half a per cent. The empty one has five. **Predict**: will a wider beam answer better
# or worse?

# %%
my_guess = ...

# %%
by_length = decoding.lengths()
decoding_pictures.lengths(by_length)

# %%
ledger.settle("the-likeliest-answer-can-be-empty", by_length)

# %% [markdown]
# The search did nothing wrong: it found what is likeliest, and what is likeliest is no answer. Greedy search was
# saved by not seeing that far.
# This is why scores are **divided by a norm of the length**. The shipped default is that of Wu et al. (2016) with
# $\alpha = 0.6$, as in
# section 6.1 of the paper: $((5 + length)/6)^\alpha$.

# %%
config = DecodingConfig()  # length_penalty = 0.6, length_norm = "wu"
print("an answer of 1, 7, 13 tokens is divided by", length_norm_of(torch.tensor([1.0, 7.0, 13.0]), config).tolist())


# %%
def my_score(log_prob, length, alpha): ...


check("decoding-length-score", my_score)

# %% [markdown]
# **Paper against code.** Beam and alpha can be set for each call; the paper's were 4 and 0.6, ours are 5 and 0.6. Our
# search stops when nothing
# left can still win.
#
# **What people get wrong.** *"Beam search finds the best answer."* Likelier, mostly; that is no promise of better.
# *"A wider beam cannot do
# harm."* It just did.
#
# ## 10 · Why it matters
#
# Three reasons made this network the one that everything since is built on. Each is a question with an experiment in
# [why_it_matters](why_it_matters.ipynb); here is one screen each.
#
# **Parallelisation.** A recurrent network computes position $t$ after position $t - 1$: $T$ steps in a row, however
# many processors there are.
# Attention computes all positions of a layer at once, at the price of $T^2$ pairs. Whether that is *faster* depends
# on length, width and
# machine; it is measured, on yours.
#
# **Long-range dependencies.** To bring something from position 1 to position $T$, a recurrent network must carry it
# through $T$ updates, and the
# gradient back through as many. In attention the way is one step for any distance. The question is what is still
# recalled after many
# distractors.
#
# **Quality.** The paper reports 28.4 BLEU (English to German) with a fraction of the training cost of what was best
# before. On small data and
# two cores nobody can repeat that; the notebook says what can be.

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
# **What people get wrong.** *"The complexity table proves it is faster."* It counts operations; an hour of clock time
# depends on what a machine does
# with them. *"Attention has no limits on length."* Positions beyond those seen in training are unknown to it
# ([positions](positions.ipynb)).
#
# ## 11 · Your own model, on a real task
#
# **Question.** How is an English word pronounced? *Tough, though, through*: no rule gets it right, and no model can
# be sure. The Carnegie Mellon
# dictionary has 125,000 entries; we learn from it, with the toolkit as it ships, for some three minutes on two cores.

# %%
pairs = {split: load_split("cmudict", split) for split in ("train", "valid", "test")}
for word, phonemes in list(zip(pairs["train"].src, pairs["train"].tgt, strict=True))[40_000:40_004]:
    print(f"{word:14} {phonemes}")
print({split: len(of_split) for split, of_split in pairs.items()})

# %% [markdown]
# These are all the settings: what `transduce train CONFIG.toml` takes. What is not said has its default, the paper's
# where it speaks. Departures:
# pre-norm and rotary positions (they train faster at this size), and an average of the weights.

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
# **An honest score** is measured on words that were in no part of training, on what the model writes by itself, and
# comes with an
# interval: with other test words it might have been anything in it.

# %%
word_errors, phoneme_errors = score(predictor, some["test"].src, [some["test"].tgt], ("wer", "per"), group_sources=True)
print(word_errors, "% of", word_errors.num_segments, "words", "\n" + str(phoneme_errors), "% of phonemes")
print(f"words right: {100 - word_errors.value:.1f} %; your guess: {my_guess}")

# %% [markdown]
# Words that are in no dictionary, each with the three best answers of a beam of five and their log-probabilities
# after normalisation:

# %%
NEW_WORDS = ["transduce", "blorptastic", "snizzlewick", "grokking", "vaswanian"]
for word, answers in zip(NEW_WORDS, predictor.predict_n_best(NEW_WORDS, 3), strict=True):
    print(f"{word:12}", "   ".join(f"{answer.text} ({answer.score:.2f})" for answer in answers))

# %% [markdown]
# Where did it look? The weights of cross-attention in the last layer, averaged over its heads, while it writes. They
# say where the model *looked*; they do
# not explain why it answered so ([looking_inside](looking_inside.ipynb)).

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
# ### Your own pairs
#
# The same for any text in, text out: one pair a line, source TAB target. `fit` needs no settings; it holds out its
# own test part.
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
# In Python: `transduce.fit(["pairs.tsv"], Path("runs/mine"), minutes=15)`, then
# `transduce.load("runs/mine").predict(["a line"])`.
#
# ## What you now know
#
# - Attention is a look-up by similarity; its heads look for different things; positions must be told to it (chapters
#   1 to 3).
# - A layer is attention, then a network for each position alone, each added to what was there and normalised (4, 5).
# - The encoder reads all at once, the decoder writes from left to right, and masks are what makes the difference (6,
#   7).
# - Training tells the model every right token but one; writing does not. What is logged in training is not what you
#   get (8, 9).
#
# ## What to read next
#
# The paper again: [arXiv 1706.03762](https://arxiv.org/abs/1706.03762), with `docs/PAPER.md` beside it. Then the
# other notebooks:
# [training_recipe](training_recipe.ipynb), [why_it_matters](why_it_matters.ipynb),
# [real_translation](real_translation.ipynb),
# [looking_inside](looking_inside.ipynb), [break_it](break_it.ipynb); and `src/transduce/model/`, which is short.
#
# ## Further exercises
#
# 1. Train chapter 11 with `num_heads = 1`, then with `d_ff = 32`. Which hurts more? Compare the intervals, not the
#    numbers.
# 2. Learn the other way: phonemes to letters. Which direction is harder, and why?
# 3. Make pairs of dates ("3 March 2024", "2024-03-03") and `fit` them. How many do you need until none of 1,000 new
#    ones is wrong?
# 4. Take the model of chapter 11 and find the words that it is surest of and gets wrong. What do they have in common?

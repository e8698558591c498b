# %% [markdown]
# # Real translation, and what its score says
#
# In [the flagship](transformer.ipynb) you trained a model of your own. Here the task is the paper's: **translation**. A small
# Transformer learns English to German from captions of photographs for a minute or two. Then comes the part that is done wrong
# most often: saying how good it is.
#
# You need: what a subword is, what greedy and beam search do ([flagship, chapter 9](transformer.ipynb)).
# You will know: what BLEU counts, how one model gets five numbers, and how sure a score is.

# %%
from collections import Counter

import sacrebleu

from transduce.evaluation.metrics import compare
from transduce.learn import Ledger, check, guessed, source_of
from transduce.learn.real_translation import experiments as translation
from transduce.learn.real_translation import pictures
from transduce.learn.real_translation.exercises import SIGNATURES

ledger = Ledger.load()

# %% [markdown]
# ## 1 · A translator in a minute or two
#
# **Question.** How far does a Transformer with some two million numbers get in a minute or two on two cores?
#
# The settings are those of the toolkit, in TOML, as `transduce train CONFIG.toml` takes them. Nothing in this notebook trains in
# another way: what you see is what you would run.

# %%
model = translation.translator()
print(model.settings.split("[validation]")[0].strip())

# %% [markdown]
# **Predict.** What BLEU will it reach on sentences it has never seen? (A model of this size that trains for an hour and a half on these
# captions reaches 41.7, see docs/RESULTS.md; word-for-word look-up is below 10.) Put a number in before you run on.

# %%
my_guess = ...

# %%
print(f"trained on {len(model.corpus.train):,} pairs of {model.corpus.name}")
if not model.corpus.is_real:
    print(
        "This is the small form, on generated sentences. The full one needs Multi30k: `transduce data` says where it is."
    )
pictures.learning(model.rows)

# %%
for (english, german), answer in zip(model.corpus.test[:5], model.beam[:5], strict=True):
    print(f"source     {english}\nreference  {german}\nmodel      {answer}\n")

# %% [markdown]
# Read a few before you look at any number. Which words are right? Is the verb where German wants it? Are the genders?
# A score will not tell you what *kind* of mistake a model makes.

# %%
print(f"measured: {model.score}{guessed(my_guess)}")
print(model.score.signature)

# %% [markdown]
# The number comes with an interval and with a **signature**: everything one must know to compute it again. More of both below.
#
# ## 2 · What BLEU counts
#
# **Maths.** BLEU (Papineni et al. 2002; the paper's section 6.1 reports it) compares a corpus of answers with one of references.
#
# $$\text{BLEU} = 100 \cdot \underbrace{\exp\Big(\min\big(0,\ 1 - \tfrac{r}{c}\big)\Big)}_{\text{brevity penalty}} \cdot
# \Big(\prod_{n=1}^{4} p_n\Big)^{1/4}, \qquad
# p_n = \frac{\sum_{\text{sentences}} \#\,n\text{-grams of the answer that are in the reference, clipped}}
# {\sum_{\text{sentences}} \#\,n\text{-grams of the answer}}$$
#
# | symbol | what it is |
# |---|---|
# | $n$-gram | $n$ words in a row |
# | $p_n$ | precision: the share of the answers' $n$-grams that are in the reference; an $n$-gram counts at most as often as it is there (clipped) |
# | $c$, $r$ | number of words in all answers, in all references |
#
# **Naive version**, for precision of one $n$, in a few lines:


# %%
def precision(answers: list[str], references: list[str], n: int) -> float:
    """Clipped n-gram precision of a corpus."""
    right = total = 0
    for answer, reference in zip(answers, references, strict=True):
        a, b = ([tuple(t[i : i + n]) for i in range(len(t) - n + 1)] for t in (answer.split(), reference.split()))
        right += (Counter(a) & Counter(b)).total()
        total += len(a)
    return right / total


# %% [markdown]
# **Equality.** The toolkit does not count by itself: it uses sacreBLEU, so that its numbers can be compared with others'. Ours must
# be the same as what sacreBLEU reports for each $n$.

# %%
official = sacrebleu.corpus_bleu(model.beam, [model.references], tokenize="none", smooth_method="none")
ours = [100 * precision(model.beam, model.references, n) for n in (1, 2, 3, 4)]
assert all(abs(a - b) < 1e-9 for a, b in zip(ours, official.precisions, strict=True))
print("precisions for n = 1, 2, 3, 4:", [round(p, 1) for p in ours], "  brevity penalty:", round(official.bp, 3))

# %% [markdown]
# **Exercise.** Put the pieces together: BLEU of a corpus, in per cent.


# %%
def my_bleu(answers: list[str], references: list[str]) -> float: ...


check("translation-bleu", my_bleu)

# %% [markdown]
# `hint("translation-bleu")` helps; `solution("translation-bleu")` shows one (import them from `transduce.learn`).
#
# ## 3 · Five numbers out of the same model
#
# **Predict.** Below are scores of the *same* trained model. Which one is highest?

# %%
sides = {
    "beam search, as reported": model.bleu,
    "teacher-forced tokens": translation.bleu_of(model.teacher_forced, model.references),
    "in lower case": model.bleu + model.tokenisation_gap,
    "greedy": translation.bleu_of(model.greedy, model.references),
    "mean of sentences' BLEU": sum(
        sacrebleu.sentence_bleu(a, [b]).score for a, b in zip(model.beam, model.references, strict=True)
    )
    / len(model.beam),
}
pictures.bars_of(sides, unit="BLEU")

# %% [markdown]
# **Teacher-forced tokens.** During training, the model guesses every token with the *reference's* tokens before it. It is tempting
# to collect those guesses and score them: it is fast. But it is no translation: at each place the model is put back on the right track,
# wherever its own last guess led. Here is what such a "translation" looks like, and what it scores.

# %%
source_of(translation.teacher_forced_answers)

# %%
for line in range(2):
    print("teacher-forced  ", model.teacher_forced[line], "\nby itself       ", model.greedy[line], "\n")
ledger.settle("teacher-forced-bleu-is-another-number", model, fast=model.fast)

# %% [markdown]
# **Case and tokeniser.** The same answers, scored after lower-casing both sides. Papers that score tokenised, lower-cased text cannot be
# compared with those that score text as people read it; signatures tell which is which.

# %%
ledger.settle("lower-case-scores-better", model, fast=model.fast)

# %%
for letter, signature in SIGNATURES.items():
    print(letter, signature)
comparable = ...  # a set of letters: which of these scores may be compared with one another?
check("translation-signatures", comparable)

# %% [markdown]
# **The mean of sentences.** BLEU adds up counts over the corpus and divides once. The mean of each sentence's BLEU is another number.

# %%
ledger.settle("mean-of-sentences-is-not-bleu", model, fast=model.fast)

# %% [markdown]
# ## 4 · How sure is it?
#
# The test sentences are a sample. Draw as many of them again, with replacement, a thousand times, and score each draw: the middle 95 % of
# those scores are the interval (a *bootstrap*). It says what another choice of sentences might have given; it says nothing about what
# another random seed of the training would have.

# %%
ledger.settle("bleu-has-an-interval", model, fast=model.fast)

# %% [markdown]
# Two systems on the *same* sentences can be told apart more finely than by their two intervals: sentences that are hard for one are hard
# for the other. A **paired** test draws the sentences for both at once. Is beam search better than greedy by more than chance?

# %%
print(compare("bleu", model.greedy, model.beam, [model.references]))
ledger.settle("beam-search-gains", model, fast=model.fast)

# %% [markdown]
# On your own runs: `transduce compare RUN_A RUN_B --source test.en --target test.de`.
#
# ## 5 · Long enough?
#
# Beam search looks for the answer with the largest probability. Every further token multiplies it by a number below one, so the largest
# probability tends to belong to an answer that is too short, and the brevity penalty of BLEU makes one pay for it. That is why scores of
# hypotheses are divided by a power of their length (section 6.1 of the paper uses the form of Wu et al. 2016 with $\alpha = 0.6$).

# %%
ledger.settle("short-answers-without-normalisation", model, fast=model.fast)

# %%
texts = (model.sources, model.beam, model.references)
pictures.lengths(*([len(text.split()) for text in some] for some in texts))

# %% [markdown]
# ## Paper against this notebook
#
# | | paper (WMT 2014 English-German) | here |
# |---|---|---|
# | pairs | 4.5 million | 29,000 captions (2,000 generated sentences in the small form) |
# | model | base 65 million, big 213 million parameters | tiny, 2 million |
# | training | 12 hours, 3.5 days on eight P100 | a minute or two on two cores |
# | norm | post-norm | pre-norm: it learns at a higher rate ([why](norm_and_depth.ipynb)) |
# | score | 27.3, 28.4 BLEU, tokenised, with compound splitting | sacreBLEU of plain text, with signature and interval |
#
# ## What people get wrong
#
# * **Scoring teacher-forced tokens.** If a training script prints BLEU without ever *decoding*, it prints this: a number of something else. (How far told
#   and own tokens can be apart is measured in [the flagship, chapter 9](transformer.ipynb).)
# * **Building the vocabulary from all data.** Subwords are learnt from the training part alone; else the test part leaks.
# * **Choosing the length penalty, or the best checkpoint, on the test set.** Choose on validation; score the test set once.
# * **Comparing numbers without signatures**, or calling half a point on 1,000 sentences an improvement.
#
# ## Go on
#
# ```sh
# transduce train configs/multi30k_en_de.toml --processes 2       # a quarter of an hour; the README has its score
# transduce evaluate runs/multi30k_en_de --source test.en --target test.de
# transduce export runs/multi30k_en_de --format ctranslate2 -o translator
# transduce explain runs/multi30k_en_de "Two dogs play in the snow." -o page.html
# ```
#
# Next: [look inside a trained model](looking_inside.ipynb), or [break one and find out how](break_it.ipynb).

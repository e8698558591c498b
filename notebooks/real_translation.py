# %% [markdown]
# # Real translation, and what its score means
#
# In [the main notebook](transformer.ipynb) you trained a model of your own. Here the task is the one of the paper:
# **translation**. A small Transformer learns English to German from photo captions for a minute or two. Then comes
# the step that goes wrong most often: saying how good the model is.
#
# You need: what a subword is, and what greedy decoding and beam search do ([main notebook, chapter
# 9](transformer.ipynb)). You will learn: what BLEU counts, how one model gets five different scores, and how certain
# a score is.

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
# **Question.** How far does a Transformer with about two million parameters get in a minute or two on two cores?
#
# The first lines of the output below say which data this run uses: photo captions (Multi30k), or a small substitute
# of generated sentences. Then come the settings of the toolkit, in TOML, as `transduce train CONFIG.toml` reads them.
# This notebook trains exactly as that command does.

# %%
model = translation.translator()
print(f"Data: {model.corpus.name}, {len(model.corpus.train):,} sentence pairs.")
if model.corpus.is_real:
    print("These are the real photo captions.\n")
else:
    print(
        "This is the small substitute: generated sentences and a smaller model, because TRANSDUCE_FAST is set or\n"
        "Multi30k was not found (`transduce data` says where to get it). Its scores say nothing about real text.\n"
    )
print(model.settings.split("[validation]")[0].strip())

# %% [markdown]
# **Predict.** What BLEU will the model reach on sentences it has never seen? (BLEU counts the words and phrases
# shared with a human translation; 100 is a perfect match. For comparison: a model of this size that trains on these
# captions for an hour and a half reaches 41.7 on lower-cased, tokenized text, see docs/RESULTS.md; word-for-word
# look-up is below 10.) Enter a number before you run on.

# %%
my_guess = ...

# %%
print(f"trained on {len(model.corpus.train):,} pairs of {model.corpus.name}")
pictures.learning(model.rows)

# %%
for (english, german), answer in zip(model.corpus.test[:5], model.beam[:5], strict=True):
    print(f"source      {english}\nreference   {german}\nhypothesis  {answer}\n")

# %% [markdown]
# These are the first five test sentences, not a selection. After so little training, do not expect good translations.
# On captions, such a model gets common words and the typical structure of a caption. At a rare word, which it has to
# spell from subwords, it may get stuck and repeat the same subword again and again. Which words are right? Is the
# verb where German wants it? Are the genders right? A score will not tell you what *kind* of mistakes a model makes,
# so read a few outputs before you look at any number.

# %%
print(f"measured: {model.score}{guessed(my_guess)}")
print(model.score.signature)

# %% [markdown]
# The score comes with an interval and with a **signature**: everything you need to know to compute the same score
# again. There is more on both below.
#
# ## 2 · What BLEU counts
#
# **Math.** BLEU (Papineni et al. 2002; the paper reports it in section 6.1) compares the outputs for a whole corpus,
# the hypotheses, with the references, which are human translations.
#
# $$\text{BLEU} = 100 \cdot \underbrace{\exp\Big(\min\big(0,\ 1 - \tfrac{r}{c}\big)\Big)}_{\text{brevity penalty}} \cdot
# \Big(\prod_{n=1}^{4} p_n\Big)^{1/4}, \qquad
# p_n = \frac{\sum_{\text{sentences}} \#\,n\text{-grams of the hypothesis that are in the reference, clipped}}
# {\sum_{\text{sentences}} \#\,n\text{-grams of the hypothesis}}$$
#
# | symbol | meaning |
# |---|---|
# | $n$-gram | $n$ words in a row |
# | $p_n$ | precision: the share of the hypotheses' $n$-grams that are in the reference; each $n$-gram counts at most as often as it occurs there (clipped) |
# | $c$, $r$ | number of words in all hypotheses, in all references |
#
# Here is a **naive version** of the precision for one $n$, in a few lines:


# %%
def precision(answers: list[str], references: list[str], n: int) -> float:
    """Clipped n-gram precision of a corpus of hypotheses ("answers")."""
    right = total = 0
    for answer, reference in zip(answers, references, strict=True):
        a, b = ([tuple(t[i : i + n]) for i in range(len(t) - n + 1)] for t in (answer.split(), reference.split()))
        right += (Counter(a) & Counter(b)).total()
        total += len(a)
    return right / total


# %% [markdown]
# **Equality.** The toolkit does not count by itself. It uses sacreBLEU, so that its numbers can be compared with
# those of others. Our precision must equal what sacreBLEU reports for each $n$.

# %%
official = sacrebleu.corpus_bleu(model.beam, [model.references], tokenize="none", smooth_method="none")
ours = [100 * precision(model.beam, model.references, n) for n in (1, 2, 3, 4)]
assert all(abs(a - b) < 1e-9 for a, b in zip(ours, official.precisions, strict=True))
print("precisions for n = 1, 2, 3, 4:", [round(p, 1) for p in ours], "  brevity penalty:", round(official.bp, 3))

# %% [markdown]
# **Exercise.** Put the parts together: BLEU of a corpus, from 0 to 100.


# %%
def my_bleu(answers: list[str], references: list[str]) -> float: ...


check("translation-bleu", my_bleu)

# %% [markdown]
# `hint("translation-bleu")` helps; `solution("translation-bleu")` shows a solution (import them from
# `transduce.learn`).
#
# ## 3 · Five scores for the same model
#
# **Predict.** Below are five scores of the *same* trained model. Which one is the highest?

# %%
sides = {
    "beam search, as reported": model.bleu,
    "teacher-forced tokens": translation.bleu_of(model.teacher_forced, model.references),
    "beam search, in lower case": model.bleu + model.tokenisation_gap,
    "greedy decoding": translation.bleu_of(model.greedy, model.references),
    "mean of sentences' BLEU": sum(
        sacrebleu.sentence_bleu(a, [b]).score for a, b in zip(model.beam, model.references, strict=True)
    )
    / len(model.beam),
}
pictures.bars_of(sides, unit="BLEU")

# %% [markdown]
# **Teacher-forced tokens.** During training, the model predicts every token after seeing the *reference's* tokens
# before it. It is tempting to collect these predictions and score them, because it is fast. But the result is not a
# translation: at each position, the model gets the reference's previous token, whatever it predicted itself.
#
# The next outputs show what such a "translation" looks like, beside what the model writes by itself. Do not expect
# good German from either. Teacher-forced text falls apart wherever the model disagrees with the reference, because
# the next token continues the reference, not the model's own words. Text that the model writes by itself may repeat
# one subword until the length limit, because nothing puts it back on track.

# %%
source_of(translation.teacher_forced_answers)

# %%
for line in range(2):
    print("teacher-forced  ", model.teacher_forced[line], "\nby itself       ", model.greedy[line], "\n")
ledger.settle("teacher-forced-bleu-is-another-number", model, fast=model.fast)

# %% [markdown]
# **Case and tokenizer.** These are the same outputs, scored after lower-casing both sides. Scores on tokenized,
# lower-cased text cannot be compared with scores on text as people read it. The signature tells which is which.

# %%
ledger.settle("lower-case-scores-better", model, fast=model.fast)

# %%
for letter, signature in SIGNATURES.items():
    print(letter, signature)
comparable = ...  # a set of letters: which of these scores may be compared with one another?
check("translation-signatures", comparable)

# %% [markdown]
# **The mean over sentences.** BLEU adds up counts over the corpus and divides once. The mean of the BLEU of each
# sentence is a different number.

# %%
ledger.settle("mean-of-sentences-is-not-bleu", model, fast=model.fast)

# %% [markdown]
# ## 4 · How certain is the score?
#
# The test sentences are a sample. We draw a new sample of the same size from them, with replacement, a thousand
# times, and score each of these samples. The middle 95% of the scores form the interval (this is called a
# *bootstrap*). The interval says what other test sentences might have given. It says nothing about what another
# random seed of the training would have given.

# %%
ledger.settle("bleu-has-an-interval", model, fast=model.fast)

# %% [markdown]
# Two systems scored on the *same* sentences can be compared more precisely than their two intervals suggest, because
# sentences that are hard for one are hard for the other. A **paired** test draws the same sentences for both. Is beam
# search better than greedy decoding by more than chance?

# %%
print(compare("bleu", model.greedy, model.beam, [model.references]))
ledger.settle("beam-search-gains", model, fast=model.fast)

# %% [markdown]
# For your own runs: `transduce compare RUN_A RUN_B --source test.en --target test.de`.
#
# ## 5 · Long enough?
#
# Beam search looks for the output with the largest probability. Every additional token multiplies that probability by
# a number below one, so the output with the largest probability tends to be too short, and then BLEU's brevity
# penalty lowers the score. Therefore the score of a hypothesis is divided by a power of its length (the paper's
# section 6.1 uses the form of Wu et al. 2016 with $\alpha = 0.6$).

# %%
ledger.settle("short-outputs-without-normalization", model, fast=model.fast)

# %%
texts = (model.sources, model.beam, model.references)
pictures.lengths(*([len(text.split()) for text in some] for some in texts))

# %% [markdown]
# ## Paper against this notebook
#
# | | paper (WMT 2014 English-German) | here |
# |---|---|---|
# | sentence pairs | 4.5 million | 29,000 captions (2,000 generated sentences in the small substitute) |
# | model | base 65 million, big 213 million parameters | tiny, 2 million |
# | training | 12 hours, 3.5 days on eight P100 GPUs | a minute or two on two cores |
# | norm | post-norm | pre-norm: it learns at a higher rate ([why](norm_and_depth.ipynb)) |
# | score | 27.3, 28.4 BLEU, tokenized, with compound splitting | sacreBLEU of plain text, with signature and interval |
#
# ## What people get wrong
#
# * **Scoring teacher-forced tokens.** If a training script prints BLEU without ever *decoding*, this is the number it
#   prints, and it measures something else. ([The main notebook, chapter 9](transformer.ipynb) measures how far
#   accuracy on given tokens and on the model's own tokens can be apart.)
# * **Building the vocabulary from all data.** Learn subwords from the training part alone; otherwise the test part
#   leaks into training.
# * **Choosing the length penalty or the best checkpoint on the test set.** Choose on the validation set, and score
#   the test set once.
# * **Comparing scores without signatures**, or calling half a point on 1,000 sentences an improvement.
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

# %% [markdown]
# # Looking inside a trained model
#
# [The flagship](transformer.ipynb) built the network and trained one. Here we open a trained one: what its heads look at, which of them it could
# do without, and at which layer the answer is there. The task is the pronunciation of English words: `k n i g h t` → `N AY T`.
#
# You need: attention and its heads ([chapters 1 and 2](transformer.ipynb)). One warning goes first, and holds to the end: **a map of attention says where
# a head looked, not why the model answered as it did.**

# %%
from transduce.learn import Ledger, check
from transduce.learn.experiments import inside
from transduce.learn.explained import explained
from transduce.learn.pictures import inside as pictures
from transduce.learn.pictures import maps as map_pictures

ledger = Ledger.load()


def guessed(guess):
    return "" if guess is ... else f"   (you guessed {guess})"


# %% [markdown]
# ## 1 · A model to look into
#
# Two layers on each side, four heads in each attention, post-norm as in the paper; short words of the CMU Pronouncing Dictionary; half a minute.

# %%
found = inside.pronouncer()
print(f"{sum(p.numel() for p in found.model.parameters()):,} parameters, {len(found.data.train):,} words to learn from")
print(f"phonemes named right, of words it never saw and told those before: {found.accuracy():.1%}")
for word, said in zip(found.data.valid_words[5:10], found.predictor.predict(found.data.valid_words[5:10]), strict=True):
    print(f"{word:10} {said}")

# %% [markdown]
# Everything about one answer, to step through: each head of the three attentions, what else might have been said, the search. For a run of your own,
# `transduce explain RUN TEXT -o page.html` writes this page.

# %%
word = found.data.valid_words[7]
explained(found.predictor, word, height=900)

# %% [markdown]
# And as a static picture, every head of the cross-attention. Rows are queries, the phonemes as they are written; columns are keys, the letters:

# %%
row = found.data.valid_words.index(word)
tokens = found.data.tokenizer
letters = tokens.source_tokens([i for i in found.batch.src[row].tolist() if i])
phonemes = tokens.target_tokens([i for i in found.batch.tgt_in[row].tolist() if i])
maps = {
    f"layer {i + 1}": found.attention[f"decoder.layers.{i}.cross_attention"][row, :, : len(phonemes), : len(letters)]
    for i in range(found.model.config.num_decoder_layers)
}
map_pictures.head_maps(maps, queries=phonemes, keys=letters)

# %% [markdown]
# ## 2 · What do the heads of the encoder look at?
#
# **Question.** To know how `c` is said one has to see what comes after it: `cat`, `city`, `chat`. Are there heads that do nothing but look next door?
#
# **Predict.** Averaged over all words: which share of its weight does the most one-sided head give to *one* place beside (or at) its query?

# %%
my_share = ...

# %%
roles = inside.roles()
print(f"the most one-sided head: {roles.sharpest:.0%}{guessed(my_share)}")
pictures.roles(roles)

# %%
ledger.settle("inside-heads-look-beside-them", roles)

# %% [markdown]
# Voita et al. (2019) found such *positional* heads in large translation models, too; and heads that follow syntax, for which our words are too short.
#
# How sharp a head is can be told in one number, the **entropy** of its weights: 0 bits if it looks at one place, $\log_2 n$ bits if at $n$ places alike.
#
# $$H(w) = - \sum_j w_j \log_2 w_j$$
#
# | symbol | what it is |
# |---|---|
# | $w_j$ | weight that one query gives to key $j$; all of them add up to 1 |
# | $H$ | entropy, in bits |


# %%
def my_entropy(weights):
    """Of weights (queries, keys), in bits: one number for each query."""
    ...


check("inside-entropy", my_entropy)

# %%
sharp = sorted(roles.entropy.items(), key=lambda item: item[1])
print("sharpest:", ", ".join(f"{pictures.short(head)} {bits:.1f} bits" for head, bits in sharp[:4]))
print("broadest:", ", ".join(f"{pictures.short(head)} {bits:.1f} bits" for head, bits in sharp[-4:]))

# %% [markdown]
# ## 3 · Is cross-attention an alignment?
#
# **Question.** Spelling and sound run in the same order. Nobody told the model. Does its cross-attention walk through the word from left to right?
#
# **Predict.** At which share of steps does the letter looked at most *not* lie to the left of the one before? (In random order it would be about half.)

# %%
my_share = ...

# %%
alignment = inside.alignment()
print(f"forward or still: {alignment.forward:.1%}, in random order {alignment.shuffled:.1%}{guessed(my_share)}")
print(f"correlation of place in the answer and centre of attention: {alignment.correlation:.3f}")
pictures.alignment(alignment)

# %%
ledger.settle("inside-cross-attention-moves-forward", alignment)

# %% [markdown]
# So here, taken together, the heads of the last layer do align. Do not count on it: single heads need not, translation is not in order, and a model may
# look at a letter's neighbour, whose vector has the letter in it as well, for the encoder has mixed them.
#
# **Exercise.** Which of these does a map of weights show? **A** how the values were weighed in one head. **B** which source token decided the answer.
# **C** that each row adds up to 1. **D** everything that position $i$ knows of position $j$.

# %%
my_letters = ...  # a set, such as {"A", "B"}
check("inside-what-a-map-shows", my_letters)

# %% [markdown]
# ## 4 · Which heads can go?
#
# **Question.** If heads look for different things, each should be missed. Silence one at a time (the columns of $W^O$ that carry what it found are set to zero)
# and count the phonemes that are still named right. Nothing is trained again.
#
# **Predict.** What share of the heads costs less than one point?

# %%
my_share = ...

# %%
pruned = inside.pruning()
print(f"{len(pruned.costs)} heads; accuracy with all of them {pruned.accuracy:.1%}{guessed(my_share)}")
pictures.pruning(pruned)

# %%
ledger.settle("inside-many-heads-can-go", pruned)

# %%
ledger.settle("inside-some-heads-cannot", pruned)

# %% [markdown]
# Michel et al. (2019) saw the same in large models: most heads can be taken out *one at a time*. That does not mean that all of those can be taken out at once: some
# stand in for each other.
#
# ## 5 · When is the answer there?
#
# **Question.** Each decoder layer adds to the residual stream. Read the stream after every layer with the output matrix, as if the network ended there (the *logit
# lens*): at which layer is the right phoneme on top?
#
# **Predict.** In what share of places is the final answer on top after the *first* of the two layers?

# %%
my_share = ...

# %%
lens = inside.lens(word)
print(f"after the first layer: {lens.after_first_layer:.0%}{guessed(my_share)}")
pictures.shares(lens.agreement)

# %%
pictures.lens(lens, answer=list(lens.example.values())[-1])

# %%
ledger.settle("inside-the-last-layer-decides", lens)

# %% [markdown]
# Under post-norm every layer normalises the stream again, so an early layer is under no pressure to speak the output's language. Under pre-norm it is a sum
# ([norm and depth](norm_and_depth.ipynb)), and the lens tends to see more, sooner.
#
# ## What people get wrong
#
# * **"Attention explains the answer."** Weights say how values were mixed, not what the values held. Another pattern may give the same answer: most heads could be
#   silenced above with hardly a change.
# * **Labels on the wrong axes.** Rows are those who look, columns what is looked at; in cross-attention that is target by source. Every map here refuses labels that
#   do not fit its shape.
# * **Reading one head of one layer of one sentence.** Average, count, and compare with a baseline, as above.
#
# Next: [break it and find it](break_it.ipynb).

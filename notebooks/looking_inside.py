# %% [markdown]
# # Looking inside a trained model
#
# [The main notebook](transformer.ipynb) builds the network and trains one. Here we open a trained one. What do its
# heads look at? Which of them could it do without? And at which layer can its output be read? The task is to
# pronounce English words: `knight` becomes `N AY T`.
#
# You need attention and its heads (chapters 1 and 2). One warning comes first and holds to the end: **an attention
# map says where a head looked, not why the model gave its output.** Sections 3 and 4 measure how far that is true
# here.

# %%
from transduce.learn import Ledger, check, guessed, hint, solution, source_of
from transduce.learn.explained import explained
from transduce.learn.looking_inside import experiments as inside
from transduce.learn.looking_inside import pictures

ledger = Ledger.load()

# %% [markdown]
# ## 1. A model to look into
#
# The model has two layers on each side, four heads in each attention, and post-norm as in the paper. It trains on
# short words of the CMU Pronouncing Dictionary for less than a minute. We look into it with words it has never seen.

# %%
found = inside.pronouncer()
print(f"{sum(p.numel() for p in found.model.parameters()):,} parameters, {len(found.data.train):,} words to learn from")
print(f"phonemes correct with teacher forcing: {found.accuracy():.1%} of {int(found.is_real.sum()):,}")
some = found.data.valid_words[5:10]
for word, said in zip(some, found.predictor.predict(some), strict=True):
    print(f"{word:10} {said}")

# %% [markdown]
# **All heads for one word.** Rows are queries (the tokens that look), columns are keys (the tokens looked at). In
# cross-attention, each row is a phoneme given to the decoder, which is about to write the *next* one. `<s>` is the
# begin symbol, `</s>` the end symbol. `record_attention` computes the weights separately, because the fused kernel,
# one compiled operation for all of attention, never returns them.

# %%
word = found.data.valid_words[7]
letters, phonemes = found.tokens(word)
maps = found.maps(word)
pictures.head_maps(
    maps["encoder.layers.1.self_attention"], "encoder self-attention, layer 2", tokens=(letters, letters)
)

# %%
pictures.head_maps(
    maps["decoder.layers.1.self_attention"], "decoder self-attention, layer 2", tokens=(phonemes, phonemes)
)

# %%
pictures.head_maps(maps["decoder.layers.1.cross_attention"], "cross-attention, layer 2", tokens=(phonemes, letters))

# %% [markdown]
# Below is one output to step through: every head, the alternatives at each step, and the search. To get this page for
# a run of your own, use `transduce explain RUN TEXT -o page.html`.

# %%
explained(found.predictor, word, height=900)

# %% [markdown]
# ## 2. Heads that look at neighbors
#
# **Question.** The pronunciation of `c` depends on the letter after it: `cat`, `city`, `chat`. Are there heads that
# only look at a neighbor?
#
# **Predict.** Take the encoder head that concentrates most on *one* place: the letter before its query, the same
# letter, or the next. What share of its weight goes to that place, on average over all words?

# %%
my_guess_sharpest = ...

# %%
roles = inside.roles()
pictures.roles(roles)

# %%
print(f"the most concentrated head: {roles.sharpest:.0%}{guessed(my_guess_sharpest)}")
ledger.settle("inside-heads-look-beside-them", roles)

# %% [markdown]
# In layer 2, three quarters to nine tenths of the weight stay within one letter of the query (a flat map of seven
# places would have about 0.4). Most heads of layer 1 look further. No head is a pure "next letter" head: each is a
# mixture. In large translation models, Voita et al. (2019) found purer ones, and also heads that follow syntax, for
# which words are too short.
#
# **Math.** One number says how sharply a head looks, the **entropy** of its weights. It is 0 bits if all weight is at
# one place, and $\log_2 n$ bits if $n$ places have equal weights.
#
# $$H_i = - \sum_j w_{ij} \log_2 w_{ij}$$
#
# | symbol | meaning |
# |---|---|
# | $w_{ij}$ | the weight that query $i$ gives to key $j$; over $j$ the weights add up to 1 |
# | $H_i$ | the entropy of row $i$, in bits |
#
# **Exercise 1.** Write a function that returns the entropy of each row, for weights of shape (queries, keys). What is
# $0 \log 0$?


# %%
def my_entropy(weights): ...


check("inside-entropy", my_entropy)

# %%
sharp = sorted(roles.entropy.items(), key=lambda item: item[1])
print("sharpest:", ", ".join(f"{pictures.short(head)} {bits:.2f} bits" for head, bits in sharp[:4]))
print("broadest:", ", ".join(f"{pictures.short(head)} {bits:.2f} bits" for head, bits in sharp[-4:]))

# %% [markdown]
# ## 3. Is cross-attention an alignment?
#
# **Question.** Spelling and sound run in the same order, but nobody told the model. Does cross-attention move through
# the word in that order? And is the letter it looks at the one that matters?
#
# **Predict.** For what share of steps is the letter looked at most *not* to the left of the previous step's letter?
# (We average all heads of the last layer. With the steps of each word shuffled, the share is about half.)

# %%
my_guess_forward = ...

# %%
alignment = inside.alignment()
pictures.alignment(alignment)

# %%
print(f"not to the left: {alignment.forward:.1%}{guessed(my_guess_forward)}; shuffled: {alignment.shuffled:.1%}")
ledger.settle("inside-cross-attention-moves-forward", alignment)

# %% [markdown]
# That looks like an alignment. But a straight line through the word never goes back either, so moving forward proves
# little. A better test is to **hide one letter** from all cross-attention and see which phonemes become less likely.
# We do this for each letter. Which method finds the letter whose absence hurts a phoneme most: the map or the
# straight line?
#
# **Predict.** For what share of phonemes does the map find it?

# %%
my_guess_named = ...

# %%
needed = inside.needed()
print(f"the letter looked at most: {needed.looked_at:.1%} of phonemes{guessed(my_guess_named)}")
print(f"the letter on a straight line: {needed.straight_line:.1%}; a random letter: {needed.any_letter:.1%}")
ledger.settle("inside-needed-beats-a-straight-line", needed)

# %% [markdown]
# So here the map of a whole layer is a good alignment, better than the straight line. But the straight line alone
# explains most of what looks so impressive in the picture. Do not count on this in other models. Single heads need
# not align. Translations do not follow the order of the source. And the vector at a letter no longer holds only that
# letter: the encoder has mixed in its neighbors, as section 2 shows.
#
# **Exercise 2.** What does a map of weights show? **A** how values were weighted in one head. **B** which source
# token decided the output. **C** that each row adds up to 1. **D** everything that position $i$ knows of position
# $j$.

# %%
my_letters = ...  # a set, such as {"A", "B"}
check("inside-what-a-map-shows", my_letters)

# %% [markdown]
# ## 4. Which heads can be removed?
#
# **Question.** If heads look for different things, the model should miss each of them. A head passes on what it found
# through its own columns of $W^O$. If we set these columns to zero, the head is silent; nothing is retrained. A
# second change keeps the head but removes its map: with queries of zero all scores are 0, so every key gets the same
# weight.

# %%
source_of(inside.silenced, inside.flattened)

# %% [markdown]
# **Predict.** What share of the heads can be silenced, one at a time, at a cost of less than one percentage point of
# phonemes predicted correctly? And how many percentage points does it cost to silence all of these heads at once?

# %%
my_guess_idle, my_guess_together = ..., ...

# %%
pruned = inside.pruning()
pictures.pruning(pruned)

# %%
print(f"{len(pruned.costs)} heads; phonemes correct with all of them: {pruned.accuracy:.1%}{guessed(my_guess_idle)}")
ledger.settle("inside-many-heads-can-go", pruned)

# %%
ledger.settle("inside-some-heads-cannot", pruned)

# %%
print(f"all at once: {pruned.together:.1f} percentage points{guessed(my_guess_together)}")
ledger.settle("inside-idle-heads-stand-in-for-each-other", pruned)

# %% [markdown]
# Both results matter. Most heads can be removed *one at a time*, as Michel et al. (2019) found in large models. That
# does not mean they do nothing: they stand in for one another. The heads the model cannot spare are mostly in
# cross-attention, the decoder's only access to the source.
#
# **A map is not an explanation.** The dots in the picture show the cost of a flat map. Look for heads whose map is
# sharp, but might as well be flat:

# %%
sharp_in_vain = [h for h, bits in sharp if bits < 1 and pruned.flat[h] < 1]
for head in sharp_in_vain:
    print(f"{pictures.short(head)}: {roles.entropy[head]:.2f} bits; a flat map costs {pruned.flat[head]:.1f} points")
ledger.settle("inside-flat-maps-will-do", pruned)

# %% [markdown]
# The picture of such a head is as clear as any other, and one could tell a story about it.
#
# Two cautions. The first token of a decoder can only look at itself, so its row always has 0 bits. With short
# outputs, this makes decoder heads look sharp. And a flat map is not silence: where a dot is above its bar, the mean
# of everything is worse than nothing.
#
# **Exercise 3.** Silence head `head` of an attention with `num_heads` heads yourself. Return a new weight of
# `out_proj`, shape (d_model, d_model), that drops what the head found. Remember that `nn.Linear` computes $x W^\top$.


# %%
def my_silenced(weight, head, num_heads): ...


check("inside-silence", my_silenced)

# %% [markdown]
# ## 5. At which layer does the output appear?
#
# **Question.** Each sub-layer adds to the residual stream and normalizes the sum. After each sub-layer, we apply the
# output matrix to the stream, as if the network ended there. This is called the *logit lens*. Where does the final
# output first appear?
#
# **Predict.** Take the phoneme the model finally predicts. In what share of places is it already the most likely one
# after the *first* of the two decoder layers?

# %%
my_guess_first_layer = ...

# %%
lens = inside.lens(word)
pictures.shares(lens.agreement)

# %%
pictures.lens(lens, answer=list(lens.example.values())[-1])

# %%
print(f"after the first layer: {lens.after_first_layer:.0%}{guessed(my_guess_first_layer)}")
ledger.settle("inside-the-last-layer-decides", lens)

# %% [markdown]
# Read the table from top to bottom. At first the lens shows the *input* token: embedding and output share one matrix
# (section 3.4 of the paper), so the lens reads the previous token back. Then the feed-forward network of layer 1
# removes it. From what is left, the output matrix reads the final phoneme in only a quarter of the places (names such
# as `<0x31>` are bytes that no phoneme needs). Then a single sub-layer brings the final phoneme to the top, and it is
# the one that looks at the source:

# %%
reads = list(lens.agreement.values())
assert max(range(1, len(reads)), key=lambda i: reads[i] - reads[i - 1]) == 5 or len(found.data.train) < 2_000
print({name: f"{share:.0%}" for name, share in lens.agreement.items()})

# %% [markdown]
# If the last matrix cannot *read* a layer, that does not mean the layer knows nothing: nothing in training made it
# use the language of the output. With pre-norm the stream is a plain sum ([norm and depth](norm_and_depth.ipynb)),
# and the lens tends to see more, earlier.
#
# ## Hints and a solution

# %%
hint("inside-silence")

# %%
solution("inside-entropy")

# %% [markdown]
# ## Paper against code
#
# | paper | here |
# |---|---|
# | figures 3 to 5: maps of selected heads for one selected sentence | all heads; claims are averages over the held-out words |
# | heads "appear to exhibit behavior related to the … structure of the sentences" | measured, and compared with a baseline |
# | says nothing about removing heads | columns of $W^O$ set to zero, without retraining |
#
# This is one model, one seed and one small task. With another seed, other heads do other things. What carries over is
# the way of asking.
#
# ## What people get wrong
#
# - **"Attention explains the output."** Weights say how values were mixed. They do not say what was in the values, or
#   what the next layers made of them.
# - **Labels on the wrong axes.** Rows look, columns are looked at; cross-attention is target by source. A well-known
#   tutorial has had it the wrong way around for years (harvardnlp/annotated-transformer#104). The maps here refuse
#   labels that do not fit their shape. A square map cannot detect the mistake, so name both axes.
# - **Reading one head of one layer for one sentence.** Average, count, and compare with something naive.
# - **"Most heads are useless."** Only one at a time. See section 4.
# - **Maps that do not add up to 1.** They were recorded in training, after dropout on the weights
#   (pytorch/pytorch#42929). This package has no dropout there, and neither has the paper.
#
# Next: [break it and find it](break_it.ipynb).

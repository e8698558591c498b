# %% [markdown]
# # Looking inside a trained model
#
# [The main notebook](transformer.ipynb) builds the network and trains one. Here we open a trained one: what do its
# heads look at, which of them could it do without, and at which layer is the answer there? The task is the
# pronunciation of English words: `knight` is said `N AY T`.
#
# You need attention and its heads (chapters 1 and 2). One warning goes first and holds to the end: **a map of attention
# says where a head looked, not why the model answered as it did.** Sections 3 and 4 measure how far that is true here.

# %%
from transduce.learn import Ledger, check, guessed, hint, solution, source_of
from transduce.learn.explained import explained
from transduce.learn.looking_inside import experiments as inside
from transduce.learn.looking_inside import pictures

ledger = Ledger.load()

# %% [markdown]
# ## 1. A model to look into
#
# Two layers on each side, four heads in each attention, post-norm as in the paper. It learns from short words of the
# CMU Pronouncing Dictionary for less than a minute, and is looked into with words that it has never seen.

# %%
found = inside.pronouncer()
print(f"{sum(p.numel() for p in found.model.parameters()):,} parameters, {len(found.data.train):,} words to learn from")
print(f"phonemes named right, told those before: {found.accuracy():.1%} of {int(found.is_real.sum()):,}")
some = found.data.valid_words[5:10]
for word, said in zip(some, found.predictor.predict(some), strict=True):
    print(f"{word:10} {said}")

# %% [markdown]
# **All heads of one word.** Rows are queries, those who look; columns are keys, what is looked at. In cross-attention a
# row is a phoneme that the decoder is given, and it is about to write the *next* one; `<s>` begins, `</s>` ends. The
# weights are computed again from outside (`record_attention`): the fused kernel that does the work never shows them.

# %%
word = found.data.valid_words[7]
letters, phonemes = found.tokens(word)
maps = found.maps(word)
pictures.head_maps(maps["encoder.layers.1.self_attention"], "encoder, layer 2", tokens=(letters, letters))

# %%
pictures.head_maps(maps["decoder.layers.1.self_attention"], "decoder, itself, layer 2", tokens=(phonemes, phonemes))

# %%
pictures.head_maps(maps["decoder.layers.1.cross_attention"], "cross-attention, layer 2", tokens=(phonemes, letters))

# %% [markdown]
# Below, one answer to step through: every head, what else might have been written, the search. For a run of your own,
# `transduce explain RUN TEXT -o page.html` writes this page.

# %%
explained(found.predictor, word, height=900)

# %% [markdown]
# ## 2. Heads that look next door
#
# **Question.** How `c` is said depends on what comes after it: `cat`, `city`, `chat`. Are there heads that do nothing
# but look next door?
#
# **Predict.** Over all words, what share of its weight does the most one-sided head of the encoder give to *one* place:
# the letter before, the same, or the next?

# %%
my_guess_sharpest = ...

# %%
roles = inside.roles()
pictures.roles(roles)

# %%
print(f"the most one-sided head: {roles.sharpest:.0%}{guessed(my_guess_sharpest)}")
ledger.settle("inside-heads-look-beside-them", roles)

# %% [markdown]
# In layer 2 three quarters to nine tenths of the weight stays within one letter of the query (a flat map of seven places
# would have about 0.4); most heads of layer 1 look further. No head is a
# pure "next letter" head: each is a mixture. In large translation models, Voita et al. (2019) found purer ones, beside
# heads that follow syntax, for which words are too short.
#
# **Maths.** How sharp a head looks is one number, the **entropy** of its weights: 0 bits for all weight at one place,
# $\log_2 n$ bits for $n$ places alike.
#
# $$H_i = - \sum_j w_{ij} \log_2 w_{ij}$$
#
# | symbol | what it is |
# |---|---|
# | $w_{ij}$ | weight that query $i$ gives to key $j$; over $j$ they add up to 1 |
# | $H_i$ | entropy of row $i$, in bits |
#
# **Exercise 1.** Write it, for weights of shape (queries, keys). What is $0 \log 0$?


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
# **Question.** Spelling and sound run in the same order, and nobody told the model. Does cross-attention walk through
# the word? And is the letter it looks at the one that matters?
#
# **Predict.** At what share of steps does the letter looked at most *not* lie left of the one before? (All heads of the
# last layer together. If the steps of a word are shuffled, it is about half.)

# %%
my_guess_forward = ...

# %%
alignment = inside.alignment()
pictures.alignment(alignment)

# %%
print(f"forward or still: {alignment.forward:.1%}{guessed(my_guess_forward)}; shuffled {alignment.shuffled:.1%}")
ledger.settle("inside-cross-attention-moves-forward", alignment)

# %% [markdown]
# That looks like an alignment. But a straight line through the word never goes back either, so moving forward proves
# little. A better question: **hide one letter** from all cross-attention and see which phoneme suffers most. Do that
# for each letter. Who names the letter without which a phoneme becomes most unlikely: the map, or a straight line?
#
# **Predict.** In what share of phonemes does the map name it?

# %%
my_guess_named = ...

# %%
needed = inside.needed()
print(f"the letter looked at most: {needed.looked_at:.1%}{guessed(my_guess_named)}")
print(f"the letter on a straight line: {needed.straight_line:.1%}; one at random: {needed.any_letter:.1%}")
ledger.settle("inside-needed-beats-a-straight-line", needed)

# %% [markdown]
# So here the map of a whole layer is a good alignment, better than the naive one, and most of what looks so impressive
# in the picture is the straight line. Do not count on it elsewhere. Single heads need not align. Sentences in
# translation are not in order. And the vector at a letter is no longer that letter: the encoder has mixed its
# neighbours in, as section 2 shows.
#
# **Exercise 2.** What does a map of weights show? **A** how values were weighed in one head. **B** which source token
# decided the answer. **C** that each row adds up to 1. **D** everything that position $i$ knows of position $j$.

# %%
my_letters = ...  # a set, such as {"A", "B"}
check("inside-what-a-map-shows", my_letters)

# %% [markdown]
# ## 4. Which heads can go?
#
# **Question.** If heads look for different things, each should be missed. What a head has found leaves it through its
# own columns of $W^O$. Set them to zero, and it is silent. Nothing is trained again. The second change leaves it its
# voice and takes its map: with queries of zero all scores are 0, and every key is weighed alike.

# %%
source_of(inside.silenced, inside.flattened)

# %% [markdown]
# **Predict.** What share of the heads can be silenced, one at a time, for less than one point of the phonemes named
# right? And how many points do all of those cost, silenced at once?

# %%
my_guess_idle, my_guess_together = ..., ...

# %%
pruned = inside.pruning()
pictures.pruning(pruned)

# %%
print(f"{len(pruned.costs)} heads; right with all of them: {pruned.accuracy:.1%}{guessed(my_guess_idle)}")
ledger.settle("inside-many-heads-can-go", pruned)

# %%
ledger.settle("inside-some-heads-cannot", pruned)

# %%
print(f"together: {pruned.together:.1f} points{guessed(my_guess_together)}")
ledger.settle("inside-idle-heads-stand-in-for-each-other", pruned)

# %% [markdown]
# Both halves matter. Most heads can go *one at a time*, as Michel et al. (2019) saw in large models; that does not mean
# that they do nothing: they stand in for each other. What cannot be spared is mostly cross-attention, the only way by
# which the decoder hears the source.
#
# **A map is not an explanation.** The dots are the costs of a flat map. Look for heads with a sharp map that may as
# well be flat:

# %%
sharp_in_vain = [h for h, bits in sharp if bits < 1 and pruned.flat[h] < 1]
for head in sharp_in_vain:
    print(f"{pictures.short(head)}: {roles.entropy[head]:.2f} bits; made flat, it costs {pruned.flat[head]:.1f} points")
ledger.settle("inside-flat-maps-will-do", pruned)

# %% [markdown]
# A picture of such a head is as clear as any other, and one could tell a story about it.
#
# Two cautions. The first token of a decoder can look only at itself, so its rows always have 0 bits, and short answers
# make heads of the decoder look sharp. And a flat map is no silence: where a dot stands above its bar, the mean of
# everything is worse than nothing.
#
# **Exercise 3.** Silence head `head` of an attention with `num_heads` heads yourself: a new weight of `out_proj`, shape
# (d_model, d_model), in which what the head found is dropped. Remember that `nn.Linear` computes $x W^\top$.


# %%
def my_silenced(weight, head, num_heads): ...


check("inside-silence", my_silenced)

# %% [markdown]
# ## 5. When is the answer there?
#
# **Question.** Each sub-layer adds to the residual stream and normalises it. Read the stream after each of them by the
# output matrix, as if the network ended there. This is called the *logit lens*. Where does the answer come up?
#
# **Predict.** In what share of places is the phoneme that the model ends up naming on top after the *first* of the two
# decoder layers?

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
# Read the table downwards. First the stream says what came *in*: embedding and output share one matrix (section 3.4 of
# the paper), so the token before reads itself. Then the feed-forward network of layer 1 wipes that out and leaves
# something of which the output matrix reads the answer in only a quarter of the places; names such as `<0x31>` are bytes that no phoneme needs. Then one
# sub-layer brings the answer, and it is the one that looks at the source:

# %%
reads = list(lens.agreement.values())
assert max(range(1, len(reads)), key=lambda i: reads[i] - reads[i - 1]) == 5 or len(found.data.train) < 2_000
print({name: f"{share:.0%}" for name, share in lens.agreement.items()})

# %% [markdown]
# That a layer cannot be *read* with the last matrix does not mean that it knows nothing: nobody trained it to speak the
# output's language. Under pre-norm the stream is a plain sum ([norm and depth](norm_and_depth.ipynb)), and the lens
# tends to see more, sooner.
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
# | figures 3 to 5: maps of chosen heads of a chosen sentence | all heads; claims are averages over the words held out |
# | heads "appear to exhibit behavior related to the … structure of the sentences" | scored, beside a baseline |
# | silent on taking heads out | columns of $W^O$ set to zero, without training again |
#
# One model, one seed, one small task: which head does what is another story with another seed. The ways of asking are
# what can be taken along.
#
# ## What people get wrong
#
# - **"Attention explains the answer."** Weights say how values were mixed, not what was in them, nor what came of it.
# - **Labels on the wrong axes.** Rows look, columns are looked at; cross-attention is target by source. A well-known
#   tutorial has had it the wrong way round for years (harvardnlp/annotated-transformer#104). The maps here refuse
#   labels that do not fit their shape; a square map cannot tell, so name both.
# - **Reading one head of one layer of one sentence.** Average, count, and compare with something naive.
# - **"Most heads are useless."** One at a time. See section 4.
# - **Maps that do not add up to 1** were recorded in training, after a dropout on the weights (pytorch/pytorch#42929);
#   this package has none there, as the paper has none.
#
# Next: [break it and find it](break_it.ipynb).

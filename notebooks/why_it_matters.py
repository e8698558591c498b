# %% [markdown]
# # Why it matters: three reasons, measured
#
# The paper gives three reasons to leave recurrence: work that can be done **in parallel**, **short ways** between
# far tokens (both in section 4, table 1), and **better answers** (section 6, table 2). They are quoted everywhere.
# Here each is measured, on your machine, beside what the Transformer replaced: a GRU and an LSTM, as large, trained
# alike. Not everything comes out as quoted.
#
# You need: self-attention and the encoder-decoder ([flagship, chapters 1 and 6](transformer.ipynb)).
# You will know: what has to wait for what, what a recurrent network forgets and what it does not, and when a GRU with
# attention is the better choice.

# %%
import torch
from torch import nn

from transduce.devices.cpu import speed_up_cpu
from transduce.learn import Ledger, check, guessed, source_of
from transduce.learn.measuring import longest_chain
from transduce.learn.recurrent import RecurrentConfig, RecurrentSeq2Seq
from transduce.learn.why_it_matters import experiments as why
from transduce.learn.why_it_matters import pictures
from transduce.learn.why_it_matters import quality as why_quality
from transduce.learn.why_it_matters.experiments import GRU, LSTM
from transduce.model.config import VocabularySizes

speed_up_cpu()
ledger = Ledger.load()

# %% [markdown]
# ## 0 · What the Transformer replaced
#
# A **recurrent** network reads one token after another into a state: a vector $h_t$ of fixed size. The GRU (Cho et al.
# 2014; here in the form of cuDNN and torch, which multiply by $r$ after $U_n$, not before) has two gates. The update gate $z$ says how
# much of the old state stays, the reset gate $r$ how much of it is used for the new one.
#
# $$r = \sigma(W_r x_t + U_r h_{t-1}), \quad z = \sigma(W_z x_t + U_z h_{t-1}), \quad
# \tilde h = \tanh(W_n x_t + r \odot U_n h_{t-1}), \quad h_t = (1 - z) \odot \tilde h + z \odot h_{t-1}$$
#
# | symbol | what it is |
# |---|---|
# | $x_t$ | the embedding of token $t$ |
# | $h_t$ | the state after token $t$ |
# | $W, U$ | trained matrices of $d \times d$ numbers: six, so a GRU layer has $6d^2$ numbers (biases left out above) |
# | $\sigma$, $\odot$ | the logistic function, from 0 to 1; product of equal places |
# | $n$, $d$ | number of tokens; channels of a state or of a token (`d_model`) |
#
# An encoder-decoder of 2014 reads the source into its last state, and the decoder starts from that (Sutskever et al.,
# Cho et al.). **Naive version** of the encoder, then **equality** with the one that this notebook uses:


# %%
def my_gru(rnn: nn.GRU, xs: torch.Tensor) -> torch.Tensor:
    """All states (n, d) of one sentence (n, d)."""
    h, states = torch.zeros(rnn.hidden_size, dtype=xs.dtype), []
    for x in xs:  # the loop that cannot be taken out: h needs the h before it
        from_x = rnn.weight_ih_l0 @ x + rnn.bias_ih_l0
        from_h = rnn.weight_hh_l0 @ h + rnn.bias_hh_l0
        r, z, _ = torch.sigmoid(from_x + from_h).chunk(3)
        new = torch.tanh(from_x.chunk(3)[2] + r * from_h.chunk(3)[2])
        h = (1 - z) * new + z * h
        states.append(h)
    return torch.stack(states)


# %%
torch.manual_seed(1)
vocabulary = VocabularySizes.joint(20)
looking = RecurrentSeq2Seq(RecurrentConfig(d_model=12, attends=True), vocabulary).double().eval()
src = torch.randint(3, 20, (1, 9))
states = looking.start(src).memory[0][0]  # what the shipped encoder keeps of each token
embedded = looking.src_embedding(src)[0] * 12**0.5
torch.testing.assert_close(my_gru(looking.encoder, embedded), states, rtol=0, atol=1e-10)
torch.testing.assert_close(nn.GRU.forward(looking.encoder, embedded[None])[0][0], states, rtol=0, atol=1e-10)

# %% [markdown]
# Bahdanau et al. (arXiv 2014, ICLR 2015) let the decoder look back at **all** states of the encoder: attention, some three
# years before the paper. One step remained: remove the recurrence. Our GRU with attention calls the very function that is equation 1:

# %%
source_of(RecurrentSeq2Seq._look_back)

# %% [markdown]
# So three networks will be compared, and the middle one is the honest one: a **GRU**, a **GRU with attention**, a
# **Transformer**. What attention does and what the absence of recurrence does can then be told apart.
#
# ## 1 · In parallel
#
# **Question.** Training knows all tokens of source and target. How many operations must wait for one another, and
# what does that cost on the machine before you?
#
# **Predict.** A GRU, an LSTM and a Transformer with the same number of parameters do a training step on 2,048 tokens
# of each side: 128 pairs of 16 tokens, or 4 pairs of 512. Which is fastest at 16? At 512?

# %%
my_guess_at_16, my_guess_at_512 = ..., ...

# %% [markdown]
# **Maths.** Table 1 of the paper, for one layer and $n$ tokens of $d$ channels:
#
# | layer | multiplications per token | operations one after another | longest way between two tokens |
# |---|---|---|---|
# | self-attention (and feed-forward with $d_{ff} = 4d$) | $12d^2 + 2nd$ | $O(1)$ | $O(1)$ |
# | GRU | $6d^2$ | $O(n)$ | $O(n)$ |
# | LSTM | $8d^2$ | $O(n)$ | $O(n)$ |
#
# (The paper's table counts the mixing alone, $n^2 d$ against $n d^2$. Here all matrices of a layer are counted; those
# of attention and feed-forward are $4d^2 + 8d^2$. Equal parameters mean equal matrices, whatever the kind: then only
# $2nd$ differs.)
#
# The number of operations that wait need not be taken on trust. Autograd keeps a graph of all that was computed; the
# longest path through it is the answer:

# %%
source_of(longest_chain)

# %% [markdown]
# **Experiment.** All networks take turns, so that whatever else the machine does disturbs all of them; the numbers are
# medians. Two of the three answers need no stopwatch.

# %%
speed = why.speed()
print(f"{'parameters':24}", speed.parameters)
for name, chain in speed.chains.items():
    print(f"{'chain of the ' + name:24}", dict(zip(speed.lengths, chain, strict=True)))
ledger.settle("a-gru-s-chain-grows-with-the-length", speed)

# %%
ledger.settle("a-transformer-s-chain-does-not-grow", speed)

# %%
pictures.step_times(speed)

# %%
for length, guess in ((speed.lengths[0], my_guess_at_16), (speed.lengths[-1], my_guess_at_512)):
    ratios = {name: round(speed.ratio(name, length), 2) for name in (GRU, LSTM)}
    print(f"time of a step at {length} tokens, as a multiple of the Transformer's: {ratios}{guessed(guess)}")
ledger.settle("a-gru-at-16", speed)

# %%
ledger.settle("a-gru-is-slow-at-512", speed)

# %%
ledger.settle("an-lstm-in-one-kernel", speed)

# %% [markdown]
# Surprised? The LSTM has a chain as long as the GRU's. (It is missing on the right because autograd sees all its
# steps as *one* operation.) What differs is who runs the loop:

# %%
for name, calls in speed.calls.items():
    print(f"operations called in a step, {name:12}", dict(zip(speed.lengths, calls, strict=True)))

# %% [markdown]
# * torch hands a whole **LSTM** to one kernel of oneDNN. Its loop runs inside, its matrices stay in the cache.
# * A **GRU** has no such kernel for training: every step is some 45 small operations, forward and backward, and at 512
#   tokens a product of 4 rows is too small to be worth its call.
# * The **Transformer** makes the same few hundred calls at any length, each of them large. What grows is $2nd$.
#
# So on a CPU with a few cores, a long chain alone costs little: there are no thousands of idle units that wait. On a
# GPU there are. The paper's first reason is one about parallel hardware: it says what *can* be used, and the paper used
# eight GPUs. Two cores do not show it; the count of what waits does. Beware of anybody's "recurrent networks are slow"
# that names no machine, no library and no length.
#
# **Decoding.** When it answers, a Transformer is sequential, too: token $t + 1$ is chosen after token $t$ is known. It
# even does more for each, for it looks back at all that is written; the GRU looks at one state.

# %%
pictures.answer_times(speed)

# %%
ledger.settle("decoding-is-sequential-for-both", speed)

# %% [markdown]
# **Exercises.**


# %%
what_waits = ...  # a set: which take a number of steps that grows with the length?
# Choose among "GRU, training", "GRU, answering", "Transformer, training", "Transformer, answering".
check("why-what-waits", what_waits)


# %%
def my_crossover(d_model: int) -> float:
    """The number of tokens at which attention's 2 n d multiplications per token equal the 12 d^2 of the matrices."""
    ...


check("why-crossover", my_crossover)

# %% [markdown]
# `hint("why-crossover")` helps; `solution("why-crossover")` shows an answer (import both from `transduce.learn`).
#
# ## 2 · From afar
#
# **Question.** How well does each network use what stands far back?
#
# **Maths.** What the first token says has to reach the answer. In a GRU it goes through every state in between:
# $n$ steps. With attention it goes there in one.

# %%
pictures.path_lengths()

# %% [markdown]
# The gradient comes back the same way. Through a GRU it is multiplied by a matrix at every step,
#
# $$\frac{\partial\, \text{loss}}{\partial x_1} = \frac{\partial\, \text{loss}}{\partial h_n}
# \cdot \frac{\partial h_n}{\partial h_{n-1}} \cdots \frac{\partial h_2}{\partial h_1}
# \cdot \frac{\partial h_1}{\partial x_1}.$$
#
# Both gates start near $\tfrac12$. A factor is then about $\tfrac12 I + \tfrac14 U_n$, which shrinks a vector to three
# quarters at best ($U_n$ starts orthogonal: it keeps lengths), and $0.75^{200} \approx 10^{-25}$. With attention, a share
# of about $1/n$ of the mixture comes from the first token, and so does the gradient: it falls as $1/n$.
#
# **Experiment 1.** The gradient at the first token of a source, before any training:

# %%
gradients = why.gradients()
pictures.far_gradients(gradients)

# %%
ledger.settle("a-gru-s-far-gradient-vanishes", gradients)

# %% [markdown]
# **Predict.** Now they are trained. The source is some random symbols of eight kinds; the target is the *first* one.
# 200 others come after it. What share will a GRU name right? (Guessing: one in eight.) And if the first *eight* are asked for?

# %%
my_guess_for_one, my_guess_for_eight = ..., ...

# %% [markdown]
# **Experiment 2.** Twice the same question. *Left:* each network is trained at one distance and sees nothing else.
# *Middle and right:* batches of all distances are mixed, and near ones can teach what far ones need. For eight symbols
# the GRU gets the best of three learning rates; for one, the middle one.

# %%
alone, recall = why.far_alone(), why.recall()
pictures.recalled(recall, alone)

# %%
print(f"one of one, {recall.gru_one_far:.0%}{guessed(my_guess_for_one)};", end=" ")
print(f"one of {recall.count}, {recall.gru_far:.0%}{guessed(my_guess_for_eight)}")
ledger.settle("far-alone-is-learned-late", alone)

# %%
ledger.settle("a-gru-carries-one-thing-far", recall)

# %% [markdown]
# This is not what one often reads: **a GRU can carry a symbol over 200 others.** An
# update gate that learns to be near 1 multiplies by nearly 1, at any distance. What the vanishing gradient spoils is
# *learning* that, or rather how soon it is learned. At the middle rate the GRU learns it from far examples alone as well as
# from mixed ones. At the smallest, these steps are too few for far examples alone (four times as many are enough), while
# near ones that are mixed in teach a part of it:

# %%
print(f"at the smallest rate: far ones alone {alone.slowest_far:.0%}, near and far ones mixed {recall.slow[-1]:.0%}")

# %% [markdown]
# And now eight symbols instead of one:

# %%
ledger.settle("a-gru-takes-longer-for-eight", recall)

# %%
ledger.settle("a-transformer-recalls-from-afar", recall)

# %%
ledger.settle("attention-repairs-a-gru", recall)

# %% [markdown]
# Look at the right picture again: the GRU's curve is *flat*. It does not get worse with distance; it is as bad at 5.
# What slows it down here is **how much** one state has to carry, not only **how far**: eight symbols have to be packed
# into one vector, kept, and unpacked in order. It does learn that, but it takes longer: after four times the steps it names
# {claim:a-gru-takes-longer-for-eight.longer:.0%}. Translation asks for whole sentences. (Cho
# et al. saw it in 2014: their BLEU fell with the length of the sentence. Bahdanau et al. drew the conclusion.)
#
# And the curve of the GRU **with attention** is the Transformer's. In one look, it is at any state it likes: nothing has
# to be carried. For distance, attention is the cure; removing recurrence is not.
# Between the tokens of *one* side, the GRU still goes step by step; that is where self-attention differs.
#
# **Exercises.**


# %%
def my_layers(num_tokens: int, width: int) -> int:
    """A convolution sees a token and the `width` - 1 before it: how many layers until the last of `num_tokens` has heard
    of the first?"""
    ...


check("why-path-length", my_layers)


# %%
def my_look_back(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What a decoder state (d,) finds in the encoder's states (n, d): equation 1, for one query, states as values."""
    ...


check("why-look-back", my_look_back)

# %% [markdown]
# ## 3 · Better answers
#
# **Question.** On real data, as large, trained for as many steps: which is best?
#
# The task is to pronounce English words that were never seen: letters in, phonemes out (CMUdict). All three have the
# same number of parameters, see the same batches, and got a learning rate of their own, the best of several. The GRUs
# read both ways, as Bahdanau's did. A score is the share of phonemes that are wrong: less is better.
#
# **Predict.** An order, from best to worst, after few steps and after many:

# %%
my_order_early, my_order_late = ..., ...

# %%
quality = why_quality.quality()
pictures.error_rates(quality)

# %%
for place, (when, guess) in enumerate((("early", my_order_early), ("late", my_order_late))):
    order = sorted(quality.scores, key=lambda name: quality.scores[name][place].value)
    print(f"best to worst, {when}: {', '.join(order)}{guessed(guess)}")
for name, seconds in quality.seconds.items():
    took = ", ".join(f"{s:.0f} s for {n} steps" for s, n in zip(seconds, quality.steps, strict=True))
    print(f"{name:20}{quality.parameters[name]:>9,} parameters   {took}")
ledger.settle("quality-beside-a-gru", quality)

# %%
ledger.settle("quality-beside-a-gru-with-attention", quality)

# %%
for word, right, said in quality.samples[:4]:
    print(f"{word:20}{right}", *(f"\n  {name:18}  {answer}" for name, answer in said.items()), "\n")

# %% [markdown]
# Plainly: **at this size and after this little training the GRU with attention wins**, and the one without loses to
# both. Pronunciation is nearly monotone, letter by letter from left to right; a recurrent network has that order
# built in, the Transformer has to learn it from the data. The more steps, the smaller the difference becomes: after four times as many it is
# {claim:quality-beside-a-gru-with-attention.longer:+.1f} points. What is built in helps most where there is least to learn from.
#
# **What the paper's table 2 says** is about another world: 4.5 million pairs (English-German) and 36 million
# (English-French), days on eight GPUs.
#
# | WMT 2014, BLEU | En-De | En-Fr | FLOPs of training, En-De |
# |---|---|---|---|
# | GNMT + RL: LSTMs **with attention** (Wu et al. 2016) | 24.6 | 39.92 | $2.3 \cdot 10^{19}$ |
# | ConvS2S: convolutions with attention (Gehring et al. 2017) | 25.16 | 40.46 | $9.6 \cdot 10^{18}$ |
# | Transformer (base) | 27.3 | 38.1 | $3.3 \cdot 10^{18}$ |
# | Transformer (big) | 28.4 | 41.8 | $2.3 \cdot 10^{19}$ |
#
# The rivals shown here had attention (ByteNet, also in the paper's table, had none), and still the base model was better with a seventh of the FLOPs of GNMT on En-De. How
# much of that is the architecture, and how much the recipe of training, was asked soon: Chen et al. (2018, "The Best
# of Both Worlds") trained LSTMs with attention with the Transformer's tricks (label smoothing, layer normalisation,
# several heads) and came out level with it or ahead. What nobody could give them is the parallel training of section 1; that,
# more than any one score, is why models grew. The numbers of that table are the paper's; none was measured here.
#
# ## Paper against this notebook
#
# | | paper | here |
# |---|---|---|
# | sizes | 65 and 213 million parameters | 0.06 to 0.5 million |
# | norm | post-norm | pre-norm: it learns at a higher rate ([why](norm_and_depth.ipynb)) |
# | positions | sinusoids | sinusoids; in section 3 rotary, as the toolkit's own pronunciation example |
# | rivals | LSTMs with attention, 8 layers | GRU and LSTM of 1 layer; Luong's attention |
# | table 1 | $n^2 d$ against $n d^2$: the mixing alone | all matrices of a layer |
# | "faster if $n < d$" (section 4) | counts operations | measures time, which depends on the kernels, too |
#
# ## What people get wrong
#
# * **"A Transformer is parallel."** In training, yes. Its answers come token by token, as everyone's.
# * **"Recurrent networks are slow."** On which machine? Here an LSTM that runs in one kernel is fast at every length.
# * **"A GRU forgets what is 100 tokens back."** It can hold a thing for as long as it likes. It has trouble *learning*
#   to, and more trouble to learn to hold *many*: 400 steps were too few here.
# * **"Attention came with the Transformer."** It came in 2014 and repaired the GRU. The paper took away the rest.
# * **"Transformers are better."** Given data and steps. With little of both, what is built in wins: try a GRU with
#   attention, or smaller steps towards the task, before you blame the data.
# * **Comparing at unequal size or with one learning rate for all.** At the smallest rate above the GRU learns nothing
#   from afar, at another it does. Whoever tunes one side alone finds what they look for.
#
# Next: [what makes deep ones train](norm_and_depth.ipynb), or [real translation](real_translation.ipynb).

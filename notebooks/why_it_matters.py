# %% [markdown]
# # Why it matters: three reasons, measured
#
# The paper gives three reasons for dropping recurrence: work that can be done **in parallel**, **short paths**
# between distant tokens (both in section 4, table 1), and **better translations** (section 6, table 2). These reasons
# are quoted everywhere. Here we measure each of them on your machine. We compare the Transformer with the networks it
# replaced, a GRU and an LSTM (another recurrent network with gates). All have the same size and are trained the same
# way. Not everything comes out as it is usually quoted.
#
# You need: self-attention and the encoder-decoder ([main notebook, chapters 1 and 6](transformer.ipynb)). You will
# learn: which computations have to wait for others, what a recurrent network forgets and what it does not, and when a
# GRU with attention is the better choice.

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
# A **recurrent** network reads one token after another into a state: a vector $h_t$ of fixed size. The GRU (Cho et
# al. 2014) has two gates, which are numbers between 0 and 1 that let something through or block it. The update gate
# $z$ says how much of the old state stays. The reset gate $r$ says how much of the old state is used to make the new
# one. We use the form of torch and of cuDNN, NVIDIA's library: it multiplies by $r$ after $U_n$, not before.
#
# $$r = \sigma(W_r x_t + U_r h_{t-1}), \quad z = \sigma(W_z x_t + U_z h_{t-1}), \quad
# \tilde h = \tanh(W_n x_t + r \odot U_n h_{t-1}), \quad h_t = (1 - z) \odot \tilde h + z \odot h_{t-1}$$
#
# | symbol | meaning |
# |---|---|
# | $x_t$ | the embedding of token $t$ |
# | $h_t$ | the state after token $t$ |
# | $W, U$ | trained matrices of $d \times d$ numbers: six, so a GRU layer has $6d^2$ numbers (biases are omitted above) |
# | $\sigma$, $\odot$ | the logistic function, from 0 to 1; the element-wise product |
# | $n$, $d$ | number of tokens; number of channels of a state or token (`d_model`) |
#
# In the encoder-decoders of 2014 (Sutskever et al., Cho et al.), the encoder reads the source into its last state,
# and the decoder starts from that state. Below is a **naive version** of the encoder, then a check that it **equals**
# the one used in this notebook:


# %%
def my_gru(rnn: nn.GRU, xs: torch.Tensor) -> torch.Tensor:
    """All states (n, d) of one sentence (n, d)."""
    h, states = torch.zeros(rnn.hidden_size, dtype=xs.dtype), []
    for x in xs:  # this loop cannot be removed: each h needs the h before it
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
states = looking.start(src).memory[0][0]  # the states that the package's encoder keeps, one per token
embedded = looking.src_embedding(src)[0] * 12**0.5
torch.testing.assert_close(my_gru(looking.encoder, embedded), states, rtol=0, atol=1e-10)
torch.testing.assert_close(nn.GRU.forward(looking.encoder, embedded[None])[0][0], states, rtol=0, atol=1e-10)

# %% [markdown]
# Bahdanau et al. (arXiv 2014, ICLR 2015) let the decoder look back at **all** states of the encoder. This was
# attention, about three years before the paper. One step remained: removing the recurrence. Our GRU with attention
# calls the same function that implements equation 1:

# %%
source_of(RecurrentSeq2Seq._look_back)

# %% [markdown]
# So we compare three networks: a **GRU**, a **GRU with attention**, and a **Transformer**. The middle one makes the
# comparison fair: it separates the effect of attention from the effect of dropping recurrence.
#
# ## 1 · In parallel
#
# **Question.** In training, all tokens of source and target are known. How many operations must wait for one another,
# and what does that cost on your machine?
#
# **Predict.** A GRU, an LSTM and a Transformer with the same number of parameters each do a training step on 2,048
# tokens per side: 128 pairs of 16 tokens, or 4 pairs of 512. Which is fastest at 16 tokens? At 512?

# %%
my_guess_at_16, my_guess_at_512 = ..., ...

# %% [markdown]
# **Math.** Table 1 of the paper, for one layer and $n$ tokens of $d$ channels:
#
# | layer | multiplications per token | sequential operations | longest path between two tokens |
# |---|---|---|---|
# | self-attention (and feed-forward with $d_{ff} = 4d$) | $12d^2 + 2nd$ | $O(1)$ | $O(1)$ |
# | GRU | $6d^2$ | $O(n)$ | $O(n)$ |
# | LSTM | $8d^2$ | $O(n)$ | $O(n)$ |
#
# (The paper's table counts only the mixing of tokens, $n^2 d$ against $n d^2$. We count all matrices of a layer;
# those of attention and feed-forward make $4d^2 + 8d^2$. With equal parameters, the matrices cost the same in every
# network, so only $2nd$ differs.)
#
# You need not take the number of sequential operations on trust. Autograd, the part of PyTorch that computes
# gradients, keeps a graph of everything that was computed. The longest path through this graph is the number we want:

# %%
source_of(longest_chain)

# %% [markdown]
# **Experiment.** The networks take turns, so that anything else the machine does slows all of them equally. The times
# are medians. The parameter counts and the chains need no stopwatch.

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
    print(f"time per step at {length} tokens, as a multiple of the Transformer's: {ratios}{guessed(guess)}")
ledger.settle("a-gru-at-16", speed)

# %%
ledger.settle("a-gru-is-slow-at-512", speed)

# %%
ledger.settle("an-lstm-in-one-kernel", speed)

# %% [markdown]
# Surprised? The LSTM's chain is as long as the GRU's. (The right plot does not show it, because autograd sees all
# steps of the LSTM as *one* operation.) The difference is who runs the loop:

# %%
for name, calls in speed.calls.items():
    print(f"operations called in a step, {name:12}", dict(zip(speed.lengths, calls, strict=True)))

# %% [markdown]
# * torch hands a whole **LSTM** to one kernel (a compiled routine) of oneDNN, Intel's library for neural networks on
#   CPUs. The loop runs inside that kernel, and the matrices stay in the CPU's cache.
# * A **GRU** has no such kernel for training. Every step consists of some 45 small operations, forward and backward.
#   At 512 tokens each of them is a product with only 4 rows, too small to be worth its call.
# * The **Transformer** makes the same few hundred calls at any length, and each of them is large. Only the term $2nd$
#   grows with the length.
#
# So a long chain alone costs little on a CPU with a few cores, because there are no thousands of idle units that wait
# for it. On a GPU there are. The paper's first reason is about parallel hardware: it says how much of the hardware
# *can* be used, and the paper used eight GPUs. Two cores do not show the effect; the length of the chain does. Be
# wary of any claim that "recurrent networks are slow" if it names no machine, no library and no length.
#
# **Decoding.** When a Transformer writes its output, it is sequential, too: it can choose token $t + 1$ only after it
# has chosen token $t$. It even does more work per token than a GRU, because it looks back at everything written so
# far. The GRU looks at one state.

# %%
pictures.answer_times(speed)

# %%
ledger.settle("decoding-is-sequential-for-both", speed)

# %% [markdown]
# **Exercises.**


# %%
what_waits = ...  # a set: for which does the number of sequential steps grow with the length?
# Choose among "GRU, training", "GRU, decoding", "Transformer, training", "Transformer, decoding".
check("why-what-waits", what_waits)


# %%
def my_crossover(d_model: int) -> float:
    """The number of tokens at which attention's 2 n d multiplications per token equal the 12 d^2 of the matrices."""
    ...


check("why-crossover", my_crossover)

# %% [markdown]
# `hint("why-crossover")` helps; `solution("why-crossover")` shows a solution (import both from `transduce.learn`).
#
# ## 2 · Long distances
#
# **Question.** How well does each network use information from far back?
#
# **Math.** What the first token says has to reach the output. In a GRU it passes through every state in between: $n$
# steps. With attention it gets there in one.

# %%
pictures.path_lengths()

# %% [markdown]
# The gradient travels the same path backward. Through a GRU it is multiplied by a matrix at every step,
#
# $$\frac{\partial\, \text{loss}}{\partial x_1} = \frac{\partial\, \text{loss}}{\partial h_n}
# \cdot \frac{\partial h_n}{\partial h_{n-1}} \cdots \frac{\partial h_2}{\partial h_1}
# \cdot \frac{\partial h_1}{\partial x_1}.$$
#
# Both gates start near $\tfrac12$. Each factor is then about $\tfrac12 I + \tfrac14 U_n$. Since $U_n$ starts as an
# orthogonal matrix, which preserves lengths, such a factor shrinks a vector to three quarters of its length at best,
# and $0.75^{200} \approx 10^{-25}$. With attention, about $1/n$ of the mixture comes from the first token, so its
# gradient falls only as $1/n$.
#
# **Experiment 1.** The gradient at the first token of a source, before any training:

# %%
gradients = why.gradients()
pictures.far_gradients(gradients)

# %%
ledger.settle("a-gru-s-far-gradient-vanishes", gradients)

# %% [markdown]
# **Predict.** Now we train the networks. The source consists of random symbols of eight kinds. The target is the
# *first* symbol; 200 others follow it. What share of the targets will a GRU get right? (Guessing gets one in eight.)
# And what share if the target is the first *eight* symbols?

# %%
my_guess_for_one, my_guess_for_eight = ..., ...

# %% [markdown]
# **Experiment 2.** We ask the same question in two ways. *Left:* each network is trained at one distance and sees no
# other. *Middle and right:* training mixes batches of all distances, so short distances can teach what long ones
# need. For eight symbols the GRU gets the best of three learning rates; for one symbol it gets the middle one.

# %%
alone, recall = why.far_alone(), why.recall()
pictures.recalled(recall, alone)

# %%
print(f"one symbol asked for: {recall.gru_one_far:.0%} right{guessed(my_guess_for_one)};", end=" ")
print(f"{recall.count} asked for: {recall.gru_far:.0%} right{guessed(my_guess_for_eight)}")
ledger.settle("far-alone-is-learned-late", alone)

# %%
ledger.settle("a-gru-carries-one-thing-far", recall)

# %% [markdown]
# This contradicts what you often read: **a GRU can carry a symbol past 200 others.** An update gate that learns to
# stay near 1 multiplies by nearly 1, at any distance. The vanishing gradient affects how soon a GRU *learns* this. At
# the middle learning rate, the GRU learns it from long distances alone as well as from mixed ones. At the smallest
# rate, this number of steps is too small for long distances alone (four times as many are enough), and mixing in
# short distances teaches part of it:

# %%
print(f"at the smallest rate: long distances alone {alone.slowest_far:.0%}, mixed distances {recall.slow[-1]:.0%}")

# %% [markdown]
# Now eight symbols instead of one:

# %%
ledger.settle("a-gru-takes-longer-for-eight", recall)

# %%
ledger.settle("a-transformer-recalls-from-afar", recall)

# %%
ledger.settle("attention-repairs-a-gru", recall)

# %% [markdown]
# Look at the right plot again: the GRU's curve is *flat*. The GRU does not get worse with distance; it is just as bad
# at distance 5. What slows it down here is **how much** one state has to carry, not only **how far**: it must pack
# eight symbols into one vector, keep them, and unpack them in order. It does learn this, but it takes longer: after
# four times as many steps it names {claim:a-gru-takes-longer-for-eight.longer:.0%} of the symbols. Translation has to
# carry whole sentences. (Cho et al. observed this in 2014: their BLEU fell as sentences got longer. Bahdanau et al.
# drew the conclusion.)
#
# The curve of the GRU **with attention** matches the Transformer's. One look reaches any state, so nothing has to be
# carried. Attention cures the distance problem; dropping recurrence does not. Between the tokens of *one* side,
# though, this GRU still goes step by step. That is the part self-attention changes.
#
# **Exercises.**


# %%
def my_layers(num_tokens: int, width: int) -> int:
    """In a convolution layer, each token sees itself and the `width` - 1 tokens before it. How many layers does it take
    until the last of `num_tokens` tokens has received something from the first?"""
    ...


check("why-path-length", my_layers)


# %%
def my_look_back(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What a decoder state (d,) finds in the encoder's states (n, d): equation 1 with one query; the states are both
    keys and values."""
    ...


check("why-look-back", my_look_back)

# %% [markdown]
# ## 3 · Better outputs
#
# **Question.** Which network is best on real data, at equal size and after equally many steps?
#
# The task is to pronounce unseen English words: letters in, phonemes out (CMUdict, a pronouncing dictionary). All
# three networks have the same number of parameters and see the same batches. Each has its own learning rate, the best
# of several. The GRU encoders read in both directions, as Bahdanau's did. The score is the phoneme error rate: the
# edits that turn the outputs into the dictionary's pronunciations, as a percentage of the dictionary's phonemes.
# Lower is better.
#
# **Predict.** Order the networks from best to worst, after few steps and after many:

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
# In short: **at this size and with this little training, the GRU with attention wins**, and the GRU without it loses
# to both. Pronunciation runs nearly letter by letter from left to right. A recurrent network has that order built in;
# the Transformer has to learn it from data. The gap shrinks with more steps: after four times as many, the error rate
# of the GRU with attention differs from the Transformer's by {claim:quality-beside-a-gru-with-attention.longer:+.1f}
# percentage points. Built-in structure helps most where there is little to learn from.
#
# **The paper's table 2** is about another scale: 4.5 million sentence pairs (English-German) and 36 million
# (English-French), and days of training on eight GPUs.
#
# | WMT 2014, BLEU | En-De | En-Fr | training FLOPs, En-De |
# |---|---|---|---|
# | GNMT + RL: LSTMs **with attention** (Wu et al. 2016) | 24.6 | 39.92 | $2.3 \cdot 10^{19}$ |
# | ConvS2S: convolutions with attention (Gehring et al. 2017) | 25.16 | 40.46 | $9.6 \cdot 10^{18}$ |
# | Transformer (base) | 27.3 | 38.1 | $3.3 \cdot 10^{18}$ |
# | Transformer (big) | 28.4 | 41.8 | $2.3 \cdot 10^{19}$ |
#
# (FLOPs are additions and multiplications of floating-point numbers.) The competitors shown here had attention;
# ByteNet, also in the paper's table, had none. Even so, the base model was better than GNMT on En-De with a seventh
# of the FLOPs. How much of that comes from the architecture, and how much from the training recipe? Chen et al.
# (2018, "The Best of Both Worlds") soon asked this. They trained LSTMs with attention and with the Transformer's
# tricks (label smoothing, layer normalization, several heads), and these matched or beat it. But no trick could give
# LSTMs the parallel training of section 1. That, more than any one score, is why models grew. The numbers in the
# table are the paper's; we measured none of them.
#
# ## Paper against this notebook
#
# | | paper | here |
# |---|---|---|
# | sizes | 65 and 213 million parameters | 0.06 to 0.5 million |
# | norm | post-norm | pre-norm: it learns at a higher rate ([why](norm_and_depth.ipynb)) |
# | positions | sinusoids | sinusoids; in section 3 rotary ([what that is](positions.ipynb)), as in the toolkit's pronunciation example |
# | competitors | LSTMs with attention, 8 layers | GRU and LSTM of 1 layer; attention as in Luong et al. (2015), with dot products as scores |
# | table 1 | $n^2 d$ against $n d^2$: only the mixing of tokens | all matrices of a layer |
# | "faster if $n < d$" (section 4) | counts operations | measures time, which also depends on the kernels |
#
# ## What people get wrong
#
# * **"A Transformer is parallel."** In training, yes. Its output comes token by token, like that of any other
#   network.
# * **"Recurrent networks are slow."** On which machine? Here an LSTM that runs in one kernel is fast at every length.
# * **"A GRU forgets what is 100 tokens back."** It can hold one thing for as long as it likes. *Learning* to do so is
#   harder, and learning to hold *many* things is harder still: 400 steps were too few here.
# * **"Attention came with the Transformer."** It came in 2014 and repaired the GRU. The paper removed the recurrence
#   that was left.
# * **"Transformers are better."** Yes, with enough data and steps. With little of both, built-in structure wins: try
#   a GRU with attention, or an easier version of the task, before you blame the data.
# * **Comparing networks of different sizes, or with one learning rate for all.** At the smallest learning rate above,
#   the GRU learns nothing from long distances; at another rate it does. If you tune only one side, you will find
#   whatever you are looking for.
#
# Next: [what makes deep networks train](norm_and_depth.ipynb), or [real translation](real_translation.ipynb).

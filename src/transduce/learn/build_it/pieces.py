"""A Transformer in thirteen pieces of plain PyTorch: the solutions of `build_it`, and the code that the book shows.

Letters in comments: B sentences of a batch, T tokens that look, S tokens that are looked at, D channels, H heads.
"""

import math

import torch
from torch import nn

PAD, BEGIN, END = 0, 1, 2  # ids that are no tokens of a text


# 1 · attention
def attention(q, k, v, may_look):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # of query i and key j: (..., T, S)
    weights = scores.masked_fill(~may_look, -math.inf).softmax(dim=-1)  # each row adds up to 1
    return weights @ v  # a mixture of the values for each query


# 2 · heads
def split_heads(x, num_heads):  # (B, T, D) -> (B, H, T, D / H)
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x):  # (B, H, T, D / H) -> (B, T, D)
    return x.transpose(1, 2).flatten(2)


# 3 · multi-head attention
class MultiHead(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.value, self.output = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def forward(self, x, memory, may_look):
        q, k, v = self.query(x), self.key(memory), self.value(memory)
        q, k, v = (split_heads(part, self.num_heads) for part in (q, k, v))
        return self.output(join_heads(attention(q, k, v, may_look)))


# 4 · sinusoids
def sinusoids(length, d_model):
    slowness = 10_000 ** (torch.arange(0, d_model, 2) / d_model)  # how many times slower than the first clock
    angles = torch.arange(length)[:, None] / slowness  # (length, D / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # sine, cosine, sine, ...


# 5 · layer normalization
class LayerNorm(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        centered = x - x.mean(dim=-1, keepdim=True)
        variance = centered.square().mean(dim=-1, keepdim=True)
        return self.gain * centered / (variance + 1e-5).sqrt() + self.bias


# 6 · feed-forward network
class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x):
        return self.down(self.up(x).relu())


# 7 · encoder layer
class EncoderLayer(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, dropout):
        super().__init__()
        self.attention = MultiHead(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm_1, self.norm_2 = LayerNorm(d_model), LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, may_look):
        x = self.norm_1(x + self.dropout(self.attention(x, x, may_look)))
        return self.norm_2(x + self.dropout(self.feed_forward(x)))


# 8 · decoder layer
class DecoderLayer(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, dropout):
        super().__init__()
        self.self_attention = MultiHead(d_model, num_heads)
        self.cross_attention = MultiHead(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm_1, self.norm_2, self.norm_3 = (LayerNorm(d_model) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, memory, may_look_back, may_look_at_source):
        x = self.norm_1(x + self.dropout(self.self_attention(x, x, may_look_back)))
        x = self.norm_2(x + self.dropout(self.cross_attention(x, memory, may_look_at_source)))
        return self.norm_3(x + self.dropout(self.feed_forward(x)))


# 9 · masks
def padding_mask(ids):  # (B, S) -> (B, 1, 1, S), for all heads and queries: True at real tokens
    return (ids != PAD)[:, None, None, :]


def causal_mask(length):  # (T, T): True on and below the diagonal
    return torch.ones(length, length, dtype=torch.bool).tril()


# 10 · the network
class Transformer(nn.Module):
    def __init__(self, num_source_ids, num_target_ids, d_model, num_heads, d_ff, num_layers, dropout):
        super().__init__()
        self.src_embedding = nn.Embedding(num_source_ids, d_model)
        self.tgt_embedding = nn.Embedding(num_target_ids, d_model)
        for embedding in (self.src_embedding, self.tgt_embedding):
            embedding.weight.data *= d_model**-0.5  # rows of length 1: the target's make logits, too
        sizes = (d_model, num_heads, d_ff, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(num_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)

    def embed(self, ids, embedding):
        x = embedding(ids) * math.sqrt(embedding.embedding_dim)
        return self.dropout(x + sinusoids(ids.size(1), embedding.embedding_dim))

    def encode(self, src):
        x = self.embed(src, self.src_embedding)
        for layer in self.encoder:
            x = layer(x, padding_mask(src))
        return x

    def decode(self, tgt_in, memory, src):
        x = self.embed(tgt_in, self.tgt_embedding)
        for layer in self.decoder:
            x = layer(x, memory, causal_mask(tgt_in.size(1)), padding_mask(src))
        return x @ self.tgt_embedding.weight.T  # logits: a number for every possible next id

    def forward(self, src, tgt_in):
        return self.decode(tgt_in, self.encode(src), src)


# 11 · shift, padding, loss
def batch_of(pairs):
    def pad(rows):
        longest = max(map(len, rows))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])

    src, tgt_in = [[*src, END] for src, _ in pairs], [[BEGIN, *tgt] for _, tgt in pairs]
    return pad(src), pad(tgt_in), pad([[*tgt, END] for _, tgt in pairs])


def loss_of(logits, tgt_out):
    log_probs = logits.log_softmax(dim=-1).gather(-1, tgt_out[..., None])[..., 0]  # of the right ids
    is_real = tgt_out != PAD
    return -(log_probs * is_real).sum() / is_real.sum()


# 12 · the training loop
def train(model, next_pairs, steps, learning_rate, warmup_steps):
    optimizer, losses = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9), []
    for step in range(1, steps + 1):
        rise, fall = step / warmup_steps, (steps - step + 1) / (steps - warmup_steps)
        optimizer.param_groups[0]["lr"] = learning_rate * min(rise, fall)
        src, tgt_in, tgt_out = batch_of(next_pairs())
        loss = loss_of(model(src, tgt_in), tgt_out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# 13 · greedy decoding
@torch.no_grad()
def greedy_decode(model, src, max_len):
    memory, tgt = model.encode(src), torch.full((len(src), 1), BEGIN)
    for _ in range(max_len):
        next_ids = model.decode(tgt, memory, src)[:, -1].argmax(dim=-1, keepdim=True)
        tgt = torch.cat((tgt, next_ids), dim=1)
    rows = [[*row, END] for row in tgt[:, 1:].tolist()]
    return [row[: row.index(END)] for row in rows]

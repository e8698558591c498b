"""The workshop: its checkers take what is right however it is written, and name each mistake; its solutions are short,
plain, and the shipped model."""

import ast
import math
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transduce.learn import Wrong, check
from transduce.learn.build_it import pieces, shipped
from transduce.learn.build_it.example import run
from transduce.learn.build_it.pieces import BEGIN, END, PAD
from transduce.learn.exercising import all_exercises

FOLDER = Path(__file__).parents[2] / "notebooks"
sys.path.insert(0, str(FOLDER))
import build  # noqa: E402 - it lies beside the notebooks, outside the package

STEPS = {name: exercise for name, exercise in all_exercises().items() if name.startswith("build-")}
ALLOWED = {"Module", "ModuleList", "Parameter", "Linear", "Embedding", "Dropout"}


# --- other ways to write the pieces ----------------------------------------------------------------------------------


def attention_by_rows(q, k, v, may_look):
    """One query after the other, exponentials by hand."""
    may_look = may_look.expand(*q.shape[:-1], k.size(-2))
    out = torch.zeros(*q.shape[:-1], v.size(-1), dtype=q.dtype)
    for i in range(q.size(-2)):
        scores = torch.einsum("...d,...sd->...s", q[..., i, :], k) * q.size(-1) ** -0.5
        powers = scores.exp() * may_look[..., i, :]
        out[..., i, :] = torch.einsum("...s,...sd->...d", powers / powers.sum(-1, keepdim=True), v)
    return out


def attention_with_an_additive_mask(q, k, v, may_look):
    scores = (q / math.sqrt(q.size(-1))) @ k.mT + torch.zeros(may_look.shape).masked_fill(~may_look, -1e9)
    return F.softmax(scores, -1) @ v


class FusedMultiHead(pieces.MultiHead):
    def forward(self, x, memory, may_look):
        heads = []
        width = x.size(-1) // self.num_heads
        for q, k, v in zip(
            *(part.split(width, dim=-1) for part in (self.query(x), self.key(memory), self.value(memory))), strict=True
        ):
            heads.append(attention_with_an_additive_mask(q, k, v, may_look))
        return self.output(torch.cat(heads, -1))


class TorchMultiHead(pieces.MultiHead):
    def forward(self, x, memory, may_look):
        def split(y):
            return y.reshape(y.size(0), y.size(1), self.num_heads, -1).permute(0, 2, 1, 3)

        mixed = F.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(memory)), split(self.value(memory)), attn_mask=may_look
        )
        return self.output(mixed.permute(0, 2, 1, 3).reshape(x.shape))


def sinusoids_by_number(length, d_model):
    table = torch.zeros(length, d_model)
    for position in range(length):
        for pair in range(d_model // 2):
            angle = position / 10_000 ** (2 * pair / d_model)
            table[position, 2 * pair], table[position, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return table


def sinusoids_by_exponentials(length, d_model):
    table = torch.empty(length, d_model)
    angles = torch.arange(length).unsqueeze(1) * torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000) / d_model))
    table[:, 0::2], table[:, 1::2] = torch.sin(angles), torch.cos(angles)
    return table


class NormByVar(pieces.LayerNorm):
    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(
            x.var(-1, keepdim=True, correction=0) + 1e-5
        ) * self.gain + self.bias


class NormBySums(pieces.LayerNorm):
    def forward(self, x):
        d = x.size(-1)
        mean = x.sum(-1, keepdim=True) / d
        variance = (x * x).sum(-1, keepdim=True) / d - mean**2
        return torch.addcmul(self.bias, self.gain, (x - mean) / torch.sqrt(variance + 1e-5))


class ClampedFeedForward(pieces.FeedForward):
    def forward(self, x):
        return self.down(torch.clamp(self.up(x), min=0))


class FeedForwardByHand(pieces.FeedForward):
    def forward(self, x):
        wide = x @ self.up.weight.T + self.up.bias
        return (wide * (wide > 0)) @ self.down.weight.T + self.down.bias


class EncoderLayerInSteps(pieces.EncoderLayer):
    def forward(self, x, may_look):
        fetched = self.dropout(self.attention(x, x, may_look))
        y = self.norm_1(fetched + x)
        computed = self.dropout(self.feed_forward(y))
        return self.norm_2(computed + y)


class EncoderLayerInALoop(pieces.EncoderLayer):
    def forward(self, x, may_look):
        for norm, part in ((self.norm_1, lambda y: self.attention(y, y, may_look)), (self.norm_2, self.feed_forward)):
            x = norm(x + self.dropout(part(x)))
        return x


class DecoderLayerInSteps(pieces.DecoderLayer):
    def forward(self, x, memory, may_look_back, may_look_at_source):
        a = self.norm_1(x + self.self_attention(x, x, may_look_back))
        b = self.norm_2(a + self.cross_attention(a, memory, may_look_at_source))
        return self.norm_3(b + self.feed_forward(b))


class DecoderLayerInALoop(pieces.DecoderLayer):
    def forward(self, x, memory, may_look_back, may_look_at_source):
        parts = (
            lambda y: self.self_attention(y, y, may_look_back),
            lambda y: self.cross_attention(y, memory, may_look_at_source),
            self.feed_forward,
        )
        for norm, part in zip((self.norm_1, self.norm_2, self.norm_3), parts, strict=True):
            x = norm(x + self.dropout(part(x)))
        return x


class TransformerWithATable(pieces.Transformer):
    def embed(self, ids, embedding):
        table = sinusoids_by_number(64, embedding.embedding_dim)
        return self.dropout(F.embedding(ids, embedding.weight) * embedding.embedding_dim**0.5 + table[: ids.size(1)])


class TransformerInOnePiece(pieces.Transformer):
    def __init__(self, num_source_ids, num_target_ids, d_model, num_heads, d_ff, num_layers, dropout):
        super().__init__(num_source_ids, num_target_ids, d_model, num_heads, d_ff, num_layers, dropout)
        self.src_embedding.weight = nn.Parameter(torch.randn(num_source_ids, d_model) / math.sqrt(d_model))
        self.tgt_embedding.weight = nn.Parameter(torch.randn(num_target_ids, d_model) / math.sqrt(d_model))

    def decode(self, tgt_in, memory, src):
        x = self.embed(tgt_in, self.tgt_embedding)
        for layer in self.decoder:
            x = layer(x, memory, torch.tril(torch.ones(tgt_in.size(1), tgt_in.size(1))) > 0, (src != 0)[:, None, None])
        return F.linear(x, self.tgt_embedding.weight)


def batch_by_copying(pairs):
    num, most_src, most_tgt = len(pairs), max(len(s) for s, _ in pairs) + 1, max(len(t) for _, t in pairs) + 1
    src, tgt_in, tgt_out = (torch.full((num, most), PAD) for most in (most_src, most_tgt, most_tgt))
    for row, (source, target) in enumerate(pairs):
        src[row, : len(source) + 1] = torch.tensor([*source, END])
        tgt_in[row, : len(target) + 1] = torch.tensor([BEGIN, *target])
        tgt_out[row, : len(target) + 1] = torch.tensor([*target, END])
    return src, tgt_in, tgt_out


def batch_by_torch(pairs):
    pad = nn.utils.rnn.pad_sequence
    rows = [([*s, END], [BEGIN, *t], [*t, END]) for s, t in pairs]
    return [pad([torch.tensor(row[i]) for row in rows], batch_first=True) for i in range(3)]


def loss_by_torch(logits, tgt_out):
    return F.cross_entropy(logits.transpose(1, 2), tgt_out, ignore_index=PAD)


def loss_by_selection(logits, tgt_out):
    real = tgt_out != PAD
    return -F.log_softmax(logits[real], -1)[torch.arange(int(real.sum())), tgt_out[real]].mean()


def train_with_a_scheduler(model, next_pairs, steps, learning_rate, warmup_steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), eps=1e-9)

    def factor(done):
        return min((done + 1) / warmup_steps, (steps - done) / (steps - warmup_steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        src, tgt_in, tgt_out = pieces.batch_of(next_pairs())
        loss = loss_by_torch(model(src, tgt_in), tgt_out)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses


def train_with_none(model, next_pairs, steps, learning_rate, warmup_steps):
    optimizer, losses = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9), [0.0] * steps
    for step in range(steps):
        rate = (step + 1) / warmup_steps if step < warmup_steps else (steps - step) / (steps - warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        batch = pieces.batch_of(next_pairs())
        loss = pieces.loss_of(model(*batch[:2]), batch[2])
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        optimizer.step()
        losses[step] = loss.item()
    return losses


@torch.no_grad()
def decode_each_alone(model, src, max_len):
    found = []
    for row in src:
        memory, ids = model.encode(row[None]), [BEGIN]
        while len(ids) <= max_len and ids[-1] != END:
            ids.append(int(model.decode(torch.tensor([ids]), memory, row[None])[0, -1].argmax()))
        found.append([i for i in ids[1:] if i != END])
    return found


@torch.no_grad()
def decode_until_all_have_ended(model, src, max_len):
    tgt, memory = torch.full((src.size(0), 1), BEGIN), model.encode(src)
    has_ended = torch.zeros(src.size(0), dtype=torch.bool)
    for _ in range(max_len):
        ids = model.decode(tgt, memory, src)[:, -1].max(-1).indices.masked_fill(has_ended, PAD)
        has_ended |= ids == END
        tgt = torch.cat((tgt, ids[:, None]), 1)
        if bool(has_ended.all()):
            break
    return [[i for i in row if i not in (BEGIN, END, PAD)] for row in tgt.tolist()]


OTHERS = {
    "build-attention": [attention_by_rows, attention_with_an_additive_mask],
    "build-heads": [
        (lambda x, h: torch.stack(x.chunk(h, -1), 1), lambda x: torch.cat(x.unbind(1), -1)),
        (
            lambda x, h: x.reshape(x.size(0), x.size(1), h, -1).permute(0, 2, 1, 3),
            lambda x: x.permute(0, 2, 1, 3).reshape(x.size(0), x.size(2), -1),
        ),
    ],
    "build-multi-head": [FusedMultiHead, TorchMultiHead],
    "build-sinusoids": [sinusoids_by_number, sinusoids_by_exponentials],
    "build-layer-norm": [NormByVar, NormBySums],
    "build-feed-forward": [ClampedFeedForward, FeedForwardByHand],
    "build-encoder-layer": [EncoderLayerInSteps, EncoderLayerInALoop],
    "build-decoder-layer": [DecoderLayerInSteps, DecoderLayerInALoop],
    "build-masks": [
        (lambda ids: ids.ne(0).view(ids.size(0), 1, 1, -1), lambda n: torch.arange(n)[:, None] >= torch.arange(n)),
        (lambda ids: (ids > 0)[:, None, None], lambda n: ~torch.ones(n, n).triu(1).bool()),
    ],
    "build-transformer": [TransformerWithATable, TransformerInOnePiece],
    "build-loss": [(batch_by_copying, loss_by_torch), (batch_by_torch, loss_by_selection)],
    "build-train": [train_with_a_scheduler, train_with_none],
    "build-greedy-decode": [decode_each_alone, decode_until_all_have_ended],
}


@pytest.mark.parametrize("name", STEPS)
def test_a_checker_takes_three_ways_to_write_it(name):
    for answer in (STEPS[name].solution, *OTHERS[name]):
        assert check(name, answer).plain == f"{name}: right."


@pytest.mark.parametrize("name", STEPS)
def test_a_checker_names_at_least_four_mistakes_and_has_hints_in_three_stages(name):
    messages = set()
    for answer in STEPS[name].wrong:
        with pytest.raises(Wrong) as caught:
            STEPS[name].check(answer)
        messages.add(str(caught.value))
    named = {message for message in messages if "differs by" not in message and "not written yet" not in message}
    assert len(named) >= 4
    assert len(STEPS[name].hints) == 3


def test_a_mistake_that_nobody_foresaw_is_told_by_how_far_off_it_is():
    told = check("build-attention", lambda q, k, v, may_look: pieces.attention(q, k, v, may_look) + 1).plain
    assert "differs by up to 1 from torch's" in told


class WithoutBias(pieces.MultiHead):
    def __init__(self, d_model, num_heads):
        super().__init__(d_model, num_heads)
        self.key = nn.Linear(d_model, d_model, bias=False)


class OtherDropout(pieces.EncoderLayer):
    """Its dropout has a name of its own, and it is pre-norm."""

    def __init__(self, d_model, num_heads, d_ff, dropout):
        super().__init__(d_model, num_heads, d_ff, dropout)
        self.drop = self.dropout
        del self.dropout

    def forward(self, x, may_look):
        y = self.norm_1(x)
        x = x + self.drop(self.attention(y, y, may_look))
        return x + self.drop(self.feed_forward(self.norm_2(x)))


class WithABuffer(pieces.Transformer):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("positions", pieces.sinusoids(99, sizes[2]))

    def encode(self, src):
        return self.embed(src, self.src_embedding)


class Raises(pieces.FeedForward):
    def forward(self, x):
        return self.down(self.upp(x))


def batch_without_begin(pairs):
    src, tgt_in, tgt_out = pieces.batch_of(pairs)
    return src, tgt_in + 3, tgt_out


@pytest.mark.parametrize(
    ("name", "answer", "told"),
    [
        ("multi-head", WithoutBias, "`key` has no bias"),
        ("encoder-layer", OtherDropout, "This is pre-norm"),
        ("transformer", WithABuffer, "The source does not go through"),
        ("feed-forward", Raises, "your code raises AttributeError: 'Raises' object has no attribute 'upp'"),
        ("loss", (lambda pairs: [ids.float() for ids in batch_by_torch(pairs)], loss_by_torch), "`src` is of"),
        ("loss", (batch_without_begin, loss_by_torch), "tgt_in does not begin with BEGIN"),
    ],
)
def test_a_module_that_is_written_otherwise_is_still_told_its_mistake(name, answer, told):
    assert told in check(f"build-{name}", answer).plain


# --- the solutions ---------------------------------------------------------------------------------------------------


def solved_cells() -> list[str]:
    notebook = build.with_solutions(build.read_text("build_it"))
    return [cell.source for cell in notebook.cells if any(tag.startswith("piece-") for tag in build.tags_of(cell))]


def test_thirteen_pieces_in_at_most_120_lines_of_plain_torch():
    cells = solved_cells()
    assert len(cells) == len(STEPS) == 13
    tree = ast.parse("\n".join(cells))
    lines = [line for line in "\n".join(cells).split("\n") if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 120
    assert len([node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]) >= 12
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn":
            assert node.attr in ALLOWED
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("functional", "layer_norm", "scaled_dot_product_attention")


def test_the_shipped_model_with_the_weights_of_the_workshop_gives_its_logits_and_outputs():
    torch.manual_seed(4)
    model = pieces.Transformer(12, 9, 16, 4, 24, 2, 0.0).eval()
    src, tgt_in, _ = pieces.batch_of([([3, 4, 5, 11], [3, 4, 5]), ([7], [8, 6, 6, 3, 3])])
    ours = shipped(model)
    with torch.no_grad():
        difference = (ours.logits(ours(src, tgt_in)) - model(src, tgt_in)).abs()[tgt_in != PAD].max()
    assert float(difference) < 1e-5


# --- the example and the notebook ------------------------------------------------------------------------------------


def test_the_example_is_that_of_the_text():
    assert "0.81    0.68    0.51    0.80" in run("attention", pieces.attention).plain
    assert "0.84    0.54" in run("sinusoids", pieces.sinusoids).plain
    assert "1.00   -1.00    1.00   -1.00" in run("layer-norm", pieces.LayerNorm).plain
    assert "not written yet" in run("attention", lambda *_: None).plain


def test_the_committed_workshop_says_what_is_missing_and_what_the_solutions_gave():
    cells = nbformat.read(FOLDER / "build_it.ipynb", as_version=4).cells
    told = [
        "".join(output.get("data", {}).get("text/plain", "")) for cell in cells for output in cell.get("outputs", [])
    ]
    assert len([text for text in told if text.startswith("build-") and "not yet." in text]) == 13
    shown = [cell.outputs for cell in cells if "with-solutions" in build.tags_of(cell)]
    assert all(build.WITH_SOLUTIONS.data in [output.get("data") for output in outputs] for outputs in shown)
    printed = "".join("".join(output.get("text", "")) for outputs in shown for output in outputs)
    assert float(printed.partition("exact match ")[2].split()[0]) >= 50
    assert float(printed.partition("largest difference between its logits and yours: ")[2].split()[0]) < 1e-5

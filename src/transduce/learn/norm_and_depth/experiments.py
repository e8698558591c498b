"""Layer normalization, residual connections and depth: twelve encoder layers, with parts taken out (section 3.1)."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transduce.data.batches import Batch
from transduce.learn.ledger import FAST
from transduce.learn.surgery import NormWithoutAdd
from transduce.learn.tasks import PAD, SymbolTask, copying
from transduce.learn.training import Training, exact_match, small_transformer, train
from transduce.model import Transformer
from transduce.model.residual import AddAndNorm
from transduce.training.loss import cross_entropy_sum

DEPTH = 12  # encoder layers; the decoder has one, so that depth is on one side alone
_STEPS, _FAST_STEPS, _PATIENT_STEPS = 300, 60, 750
_SIZES: dict[str, Any] = {"d_model": 32, "d_ff": 64, "num_encoder_layers": DEPTH, "num_decoder_layers": 1}


def without_residuals(model: Transformer) -> Transformer:
    """The same network, whose encoder no longer adds what came in; the decoder keeps its additions."""
    for module in model.encoder.modules():
        if isinstance(module, AddAndNorm):
            module.__class__ = NormWithoutAdd
    return model


def deep(*, norm_first: bool, seed: int = 1, num_layers: int = DEPTH, norm: str = "layer") -> Transformer:
    """Twelve narrow encoder layers and one decoder layer, untrained."""
    return small_transformer(
        deep_task().vocabulary, seed, norm_first=norm_first, norm=norm, **_SIZES | {"num_encoder_layers": num_layers}
    )


def blind_loss(task: SymbolTask) -> float:
    """The least mean loss, in nats a token, of one who does not see the source: all symbols are equally likely, and so
    are all lengths. An answer of n symbols costs n ln(symbols) for them and ln(lengths) for where it ends."""
    lengths = task.longest - task.shortest + 1
    mean_len = (task.longest + task.shortest) / 2
    return (mean_len * math.log(task.num_symbols) + math.log(lengths)) / (mean_len + 1)


@dataclass(frozen=True)
class Deep:
    """One training of a deep model."""

    training: Training
    final_loss: float  # nats a token: mean over the last steps, all on fresh rows
    right: float  # share of fresh sources whose whole answer, written by the model itself, is right; NaN: not measured


@dataclass(frozen=True)
class Residuals:
    """Twelve layers with residual connections and without, on the same batches; "post" with warm-up, "pre" without."""

    with_them: dict[str, Deep]
    without: dict[str, Deep]
    blind: float

    @property
    def with_by_blind(self) -> float:
        """Of pre-norm: final loss over the blind one."""
        return self.with_them["pre"].final_loss / self.blind

    @property
    def without_by_blind(self) -> float:
        """Of the better of the two."""
        return min(run.final_loss for run in self.without.values()) / self.blind


def residuals(*, fast: bool = FAST) -> Residuals:
    """Trains all to copy symbols (He et al. 2016; section 3.1: a residual connection around each sub-layer)."""
    with_them, without = (
        {norm: _trained(norm=norm, warm=norm == "post", has_residuals=has_them, fast=fast) for norm in ("post", "pre")}
        for has_them in (True, False)
    )
    return Residuals(with_them, without, blind_loss(deep_task()))


@dataclass(frozen=True)
class WarmUp:
    """Post- and pre-norm, each with warm-up and without: the same batches, the same highest rate, some seeds."""

    runs: dict[tuple[str, str], list[Deep]]  # ("post" or "pre", "with" or "without" warm-up)
    blind: float

    def loss(self, norm: str, warm: str) -> float:
        """The final loss, in nats a token: the mean of the seeds."""
        runs = self.runs[norm, warm]
        return sum(run.final_loss for run in runs) / len(runs)

    @property
    def post_behind_without(self) -> float:
        return self.loss("post", "without") - self.loss("pre", "without")

    @property
    def post_behind_with(self) -> float:
        return self.loss("post", "with") - self.loss("pre", "with")

    @property
    def pre_gain_without(self) -> float:
        return self.loss("pre", "with") - self.loss("pre", "without")


def warm_up(*, fast: bool = FAST) -> WarmUp:
    """Four trainings of the same twelve layers, by two seeds (Xiong et al. 2020, section 3)."""
    seeds = (1,) if fast else (1, 2)
    runs = {
        (norm, warm): [_trained(norm=norm, warm=warm == "with", fast=fast, seed=seed) for seed in seeds]
        for norm in ("post", "pre")
        for warm in ("without", "with")
    }
    return WarmUp(runs, blind_loss(deep_task()))


@dataclass(frozen=True)
class Patience:
    """Post-norm, for two and a half times as many steps."""

    cold: Deep
    warm: Deep
    blind: float

    @property
    def cold_behind_warm(self) -> float:
        return self.cold.final_loss - self.warm.final_loss


def patience(*, fast: bool = FAST) -> Patience:
    """The trainings of post-norm once more, longer: is it stuck, or slow?"""
    if fast:  # the same once more; nothing new is trained
        cold, warm = (_trained(norm="post", warm=is_warm, fast=fast) for is_warm in (False, True))
    else:
        cold, warm = (
            _train(deep(norm_first=False), warm=is_warm, steps=_PATIENT_STEPS, fast=fast) for is_warm in (False, True)
        )
    return Patience(cold, warm, blind_loss(deep_task()))


@dataclass(frozen=True)
class Kinds:
    """Pre-norm with LayerNorm and with RMSNorm, without warm-up."""

    layer: Deep
    rms: Deep

    @property
    def rms_behind(self) -> float:
        return self.rms.final_loss - self.layer.final_loss


def kinds(*, fast: bool = FAST) -> Kinds:
    """Trains both on the same batches; RMSNorm leaves out mean and bias (Zhang and Sennrich 2019)."""
    rms = deep(norm_first=True, norm="rms")
    steps = _FAST_STEPS if fast else _STEPS
    return Kinds(_trained(norm="pre", warm=False, fast=fast), _train(rms, warm=False, steps=steps, fast=fast))


@dataclass(frozen=True)
class AtInitialisation:
    """Untrained encoders: for "post" and "pre", means over eight seeds."""

    gradients: dict[str, Float[Tensor, " layers"]]  # length of the gradient of each layer's feed-forward matrices
    stream: dict[str, Float[Tensor, " layers_and_one"]]  # root mean square of x, before the first and after each layer

    @property
    def post_ratio(self) -> float:
        return float(self.gradients["post"][-1] / self.gradients["post"][0])

    @property
    def pre_ratio(self) -> float:
        return float(self.gradients["pre"][-1] / self.gradients["pre"][0])

    @property
    def pre_growth(self) -> float:
        return float(self.stream["pre"][-1] / self.stream["pre"][0])


def at_initialisation(*, fast: bool = FAST) -> AtInitialisation:
    """One backward pass of the training loss through models that have learned nothing (Xiong et al. 2020, figure 3)."""
    gradients, streams = {}, {}
    for name in ("post", "pre"):
        found = [_one_backward(deep(norm_first=name == "pre", seed=seed)) for seed in range(1, 3 if fast else 9)]
        gradients[name] = torch.stack([gradient for gradient, _ in found]).mean(dim=0)
        streams[name] = torch.stack([stream for _, stream in found]).mean(dim=0)
    return AtInitialisation(gradients, streams)


@dataclass(frozen=True)
class Alikeness:
    """How alike the vectors at different positions of a source are: mean cosine of all pairs, before the first and
    after each layer of untrained encoders."""

    cosines: dict[tuple[str, str], Float[Tensor, " layers_and_one"]]  # ("post" or "pre", "with" or "without")

    @property
    def without_at_the_end(self) -> float:
        """Of post-norm without additions."""
        return float(self.cosines["post", "without"][-1])


@torch.no_grad()
def alikeness(*, fast: bool = FAST) -> Alikeness:
    """Rank collapse (Dong et al. 2021): what attention does to positions when nothing is added."""
    src = deep_task().draw(64, torch.Generator().manual_seed(99)).src
    src = src[(src != PAD).sum(dim=1) == src.size(1)]  # of the longest sources, which have no padding
    found = {}
    for norm in ("post", "pre"):
        for additions in ("with", "without"):
            seeds = range(1, 2 if fast else 6)
            models = [deep(norm_first=norm == "pre", seed=seed) for seed in seeds]
            models = models if additions == "with" else [without_residuals(model) for model in models]
            found[norm, additions] = torch.stack([_cosines(model, src) for model in models]).mean(dim=0)
    return Alikeness(found)


@dataclass(frozen=True)
class Stream:
    """What every sub-layer of a pre-norm encoder adds to x, in float64; attention and feed-forward in turn."""

    start: Float[Tensor, "batch len d_model"]
    added: list[Float[Tensor, "batch len d_model"]]
    end: Float[Tensor, "batch len d_model"]  # before the final norm

    @property
    def largest_difference(self) -> float:
        return float((self.start + sum(self.added) - self.end).abs().max())


def stream(*, fast: bool = FAST) -> Stream:
    """Six untrained layers as in the paper, watched by hooks: x_final = x_0 + the outputs of all sub-layers."""
    del fast  # it is done at once
    model = deep(norm_first=True, num_layers=6).double().eval()
    added: list[Tensor] = []
    ends: list[Tensor] = []
    layers = list(model.encoder.layers)
    hooks = [part.register_forward_hook(lambda _module, _inputs, out: added.append(out)) for layer in layers
             for part in (layer.self_attention, layer.feed_forward)]  # fmt: skip
    hooks += [m.register_forward_pre_hook(lambda _module, inputs: ends.append(inputs[0]))
              for m in (layers[0], model.encoder.final_norm)]  # fmt: skip
    with torch.no_grad():
        model.encode(_probe().src)
    for hook in hooks:
        hook.remove()
    return Stream(ends[0], added, ends[1])


def root_mean_square(x: Tensor) -> float:
    """The typical size of one number of `x`: 1 after a layer normalization with gain 1 and bias 0."""
    return float(x.detach().square().mean().sqrt())


def deep_task() -> SymbolTask:
    """Copying of two to six symbols out of ten."""
    return copying(num_symbols=10, shortest=2, longest=6)


def _probe() -> Batch:
    return deep_task().draw(64, torch.Generator().manual_seed(99))


def _trained(*, norm: str, warm: bool, fast: bool, has_residuals: bool = True, seed: int = 1) -> Deep:
    return _trained_once(norm, warm, fast, has_residuals, seed)


@cache  # two experiments look at some of them; all arguments are given, for a default would make another key
def _trained_once(norm: str, warm: bool, fast: bool, has_residuals: bool, seed: int) -> Deep:
    model = deep(norm_first=norm == "pre", seed=seed)
    if not has_residuals:
        without_residuals(model)
    return _train(model, warm=warm, steps=_FAST_STEPS if fast else _STEPS, fast=fast, seed=seed)


def _train(model: Transformer, *, warm: bool, steps: int, fast: bool, seed: int = 1) -> Deep:
    warmup_steps = 3 * steps // 10 if warm else 0
    found = train(
        model, deep_task().draw, steps=steps, batch_size=32, learning_rate=2e-3, warmup_steps=warmup_steps, seed=seed
    )
    right = math.nan if fast else exact_match(model, deep_task().draw(128, torch.Generator().manual_seed(7)))
    return Deep(found, found.end(steps // 10), right)


def _one_backward(model: Transformer) -> tuple[Tensor, Tensor]:
    sizes: list[float] = []
    layers = list(model.encoder.layers)
    hooks = [layers[0].register_forward_pre_hook(lambda _module, inputs: sizes.append(root_mean_square(inputs[0])))]
    hooks += [layer.register_forward_hook(lambda _m, _i, out: sizes.append(root_mean_square(out))) for layer in layers]
    batch = _probe()
    loss, count = cross_entropy_sum(model(batch.src, batch.tgt_in), model.output_weight, batch.tgt_out, pad_id=PAD)
    (loss / count).backward()
    for hook in hooks:
        hook.remove()
    return torch.tensor([_gradient_length(layer.feed_forward) for layer in layers]), torch.tensor(sizes)


def _cosines(model: Transformer, src: Tensor) -> Tensor:
    vectors: list[Tensor] = []
    layers = list(model.encoder.layers)
    hooks = [layers[0].register_forward_pre_hook(lambda _module, inputs: vectors.append(inputs[0]))]
    hooks += [layer.register_forward_hook(lambda _m, _i, out: vectors.append(out)) for layer in layers]
    model.encode(src)
    for hook in hooks:
        hook.remove()
    is_pair = ~torch.eye(src.size(1), dtype=torch.bool)
    units = [nn.functional.normalize(x, dim=-1) for x in vectors]
    return torch.stack([(x @ x.mT)[:, is_pair].mean() for x in units])


def _gradient_length(module: nn.Module) -> float:
    matrices = [p.grad for p in module.parameters() if p.dim() == 2 and p.grad is not None]
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in matrices))

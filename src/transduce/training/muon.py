"""Muon (Jordan et al. 2024): an optimizer that orthogonalizes every update of a matrix.

The momentum of a weight matrix is dominated by a few singular directions. Setting all singular values to about 1 lets
the rare directions move as far as the frequent ones. This makes sense for maps from vectors to vectors only, so Adam
keeps the embeddings, gains and biases (see `optim.build_optimizers`).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transduce.training.distributed import Process

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: they bring small singular values near 1 in few iterations
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95  # Nesterov momentum
_ROOT_MEAN_SQUARE = 0.2  # of an update at rate 1; about that of Adam: one learning rate serves both (Liu et al. 2025)


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay, for parameters that are matrices.

    `num_parts` gives the number of matrices of equal shape that a parameter stacks: the projections to queries, keys
    and values are one parameter but three maps, each with its own singular values. All matrices of a shape are
    orthogonalized as one batch, of which each process computes its share.
    """

    def __init__(
        self,
        num_parts: Mapping[nn.Parameter, int],
        *,
        weight_decay: float = 0.0,
        process: Process = Process(),
    ) -> None:
        super().__init__([{"params": list(num_parts)}], {"lr": 0.0, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None  # where it is 1, a step changes nothing, as in fused Adam
        self._process = process
        self._by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter, parts in num_parts.items():
            shape = (parameter.size(0) // parts, parameter.size(1))
            self._by_shape.setdefault(shape, []).append(parameter)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """One update of all parameters. Every one must have a gradient."""
        (group,) = self.param_groups
        for parameter, change in self._changes():
            # Decoupled, as in AdamW: the decay is added to the finished update, not to the gradient.
            if group["weight_decay"]:
                change = change.add(parameter, alpha=group["weight_decay"])
            if self.found_inf is not None:
                change = torch.where(self.found_inf.bool(), 0.0, change)  # an `if` would wait for the device
            parameter.sub_(change, alpha=group["lr"])

    def _changes(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter and its update at rate 1, to be subtracted."""
        rank, world_size = self._process.rank, self._process.world_size
        batches: list[Tensor] = []
        momenta: dict[nn.Parameter, Tensor] = {}
        for shape, parameters in self._by_shape.items():
            moved = [self._moved(parameter) for parameter in parameters]
            momenta |= {parameter: momentum for parameter, (momentum, _) in zip(parameters, moved, strict=True)}
            directions = torch.cat([direction.view(-1, *shape) for _, direction in moved])
            changes = torch.zeros_like(directions)
            # Gradients are the same on all processes, so each does every world_size-th matrix and leaves the others 0.
            changes[rank::world_size] = orthogonalize(directions[rank::world_size])
            # An orthogonal m x n matrix has a root mean square of 1 / sqrt(max(m, n)), whatever its gradient was.
            batches.append(changes.mul_(_ROOT_MEAN_SQUARE * max(shape) ** 0.5))
        self._process.sum_(batches)  # gathers the shares: every number is zero on all processes but one
        for parameter, momentum in momenta.items():  # only now, as another process may have been lost
            self.state[parameter]["momentum"] = momentum
        return [
            (parameter, change.view(parameter.shape))
            for batch, parameters in zip(batches, self._by_shape.values(), strict=True)
            for parameter, change in zip(parameters, _split(batch, parameters), strict=True)
        ]

    def _moved(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
        """The next momentum, and its mix with the gradient, which looks one step ahead (Nesterov)."""
        if "momentum" not in self.state[parameter]:
            self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momentum, gradient = self.state[parameter]["momentum"], parameter.grad
        assert gradient is not None
        if self.found_inf is not None:
            # A momentum moved towards itself stays as it is.
            gradient = torch.where(self.found_inf.bool(), momentum, gradient)
        momentum = momentum.lerp(gradient, 1 - _MOMENTUM)
        return momentum, gradient.lerp(momentum, _MOMENTUM)


def _split(batch: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    """The matrices of a batch, split up by the parameter they belong to."""
    return batch.split([parameter.numel() // batch[0].numel() for parameter in parameters])


def orthogonalize(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Matrices with the same singular vectors and all singular values near 1 (between about 0.7 and 1.2).

    Newton-Schulz iteration: x <- a x + b (x x^T) x + c (x x^T)^2 x. With x = U S V^T every term is U (a power of S)
    V^T, so a step maps each singular value s to a s + b s^3 + c s^5 and leaves U and V alone. It takes matrix products
    only, where a singular value decomposition would be slow on a GPU.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if is_tall else matrices  # x x^T is then the smaller of the two possible squares
    # The iteration needs singular values of at most 1, and none exceeds the Frobenius norm.
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)  # b x x^T + c (x x^T)^2
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x

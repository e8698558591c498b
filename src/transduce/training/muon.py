"""Muon (Jordan et al. 2024): an optimizer whose every update of a matrix is brought near to an orthogonal one."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transduce.training.distributed import Process

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: singular values come near 1 in few iterations
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95  # of Nesterov's kind
_ROOT_MEAN_SQUARE = 0.2  # of an update at rate 1: about that of Adam, so that one rate serves both (Liu et al. 2025)


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay, for parameters that are matrices.

    `num_parts` says of each parameter how many matrices of equal shape it holds, one below the other: the projections
    to queries, keys and values are one parameter and three maps. All matrices of a shape go through as one batch,
    of which each process computes its share.
    """

    def __init__(
        self,
        num_parts: Mapping[nn.Parameter, int],
        *,
        weight_decay: float = 0.0,
        process: Process = Process(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__([{"params": list(num_parts)}], {"lr": 0.0, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None  # where it is 1 a step changes nothing, as in fused Adam
        self._process = process
        self._by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter, number in num_parts.items():
            shape = (parameter.size(0) // number, parameter.size(1))
            self._by_shape.setdefault(shape, []).append(parameter)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """One update from the gradients, which every parameter must have."""
        (group,) = self.param_groups
        for parameter, change in zip(self._parameters, self._changes(), strict=True):
            if group["weight_decay"]:
                change = change.add(parameter, alpha=group["weight_decay"])
            if self.found_inf is not None:
                change = torch.where(self.found_inf.bool(), 0.0, change)
            parameter.sub_(change, alpha=group["lr"])

    def _changes(self) -> list[Tensor]:
        """What is taken from each of `_parameters` at rate 1."""
        rank, world_size = self._process.rank, self._process.world_size
        batches = []
        for shape, parameters in self._by_shape.items():
            directions = torch.cat([self._moved(parameter).view(-1, *shape) for parameter in parameters])
            changes = torch.zeros_like(directions)
            changes[rank::world_size] = orthogonalised(directions[rank::world_size])
            batches.append(changes.mul_(_ROOT_MEAN_SQUARE * max(shape) ** 0.5))
        self._process.sum_(batches)  # of numbers that are zero on all processes but one
        return [
            change.view(parameter.shape)
            for batch, parameters in zip(batches, self._by_shape.values(), strict=True)
            for parameter, change in zip(parameters, _split(batch, parameters), strict=True)
        ]

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameters in self._by_shape.values() for parameter in parameters]

    def _moved(self, parameter: nn.Parameter) -> Tensor:
        """Takes the gradient into the momentum; what Nesterov's look ahead makes of both."""
        if "momentum" not in self.state[parameter]:
            self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momentum, gradient = self.state[parameter]["momentum"], parameter.grad
        assert gradient is not None
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf.bool(), momentum, gradient)
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM)


def _split(batch: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    """The matrices of each parameter."""
    return batch.split([parameter.numel() // batch[0].numel() for parameter in parameters])


def orthogonalised(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Matrices with the same singular vectors and all singular values near 1 (between about 0.7 and 1.2).

    By Newton-Schulz iteration: x <- a x + (b x x^T + c (x x^T)^2) x, which moves the singular values alone.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x

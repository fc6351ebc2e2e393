"""Muon: momentum whose update of every matrix is made orthogonal, for what a network multiplies by; AdamW for
the rest (biases, norms, scales).

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. A convolution's weight is
the matrix (out, in * k * k). `torch.optim.Muon` takes parameters of two dimensions only, which rules out
convolutions, and one at a time; here equal shapes go through together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Newton and Schulz's quintic x -> a x + b x^3 + c x^5, whose five rounds bring singular values near 1.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
ADAM_SHARE = 0.1  # AdamW's rate, as a share of the matrices'


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly the nearest (semi-)orthogonal matrices of (N, rows, columns): singular values near 1.

    In bfloat16, which is exact enough: values of half a percent of the matrix' norm and more end between 0.65
    and 1.25.
    """
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT  # (N, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has several rows, its first dimension, and several columns, all others."""
    return parameter.ndim > 1 and len(parameter) > 1 and parameter[0].numel() > 1


class Muon(torch.optim.Optimizer):
    """Matrices by Muon, all other parameters by AdamW at `ADAM_SHARE` of the rate and without decay.

    `lr` is the size of an update's singular values for a square matrix; a taller one's are larger by the root
    of rows over columns. A step can be recorded as a CUDA graph: the state is tensors alone, on the
    parameters' device, and `lr` may be one, too.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float | Tensor,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas}
        )

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - without a closure
        for group in self.param_groups:
            matrices: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            rest: list[Tensor] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if is_matrix(parameter):
                    matrices[len(parameter), parameter[0].numel()].append(parameter)
                else:
                    rest.append(parameter)
            for shape, members in matrices.items():
                self._step_matrices(group, shape, members)
            self._step_rest(group, rest)

    def _step_matrices(self, group: dict[str, Any], shape: tuple[int, int], members: list[Tensor]) -> None:
        gradients, momenta = _gradients(members), self._states(members, "momentum")
        for momentum, gradient in zip(momenta, gradients, strict=True):
            momentum.lerp_(gradient, 1 - group["momentum"])
        weights, now, mean = (  # (N, rows, columns) each
            torch.stack([tensor.reshape(shape) for tensor in tensors])
            for tensors in (members, gradients, momenta)
        )
        update = orthogonal(now.lerp(mean, group["momentum"])).to(weights)  # of Nesterov's momentum
        change = max(1.0, shape[0] / shape[1]) ** 0.5 * update + group["weight_decay"] * weights
        for parameter, matrix in zip(members, group["lr"] * change, strict=True):
            parameter.sub_(matrix.reshape(parameter.shape))

    def _step_rest(self, group: dict[str, Any], members: list[Tensor]) -> None:
        for parameter in members:
            if not self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        adamw(
            members,
            _gradients(members),
            self._states(members, "mean"),
            self._states(members, "square"),
            [],
            [self.state[parameter]["step"] for parameter in members],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=ADAM_SHARE * group["lr"],
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def _states(self, members: list[Tensor], name: str) -> list[Tensor]:
        """One tensor of the state of each parameter, of its shape and at first zero."""
        for parameter in members:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in members]


def _gradients(members: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in members if parameter.grad is not None]

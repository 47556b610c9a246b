"""Adam, and the running average of what it moves: all parameters in one row, a step one operation.

D. Kingma, J. Ba, arXiv:1412.6980, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CLIP = 10.0
"""Largest norm of the gradient of the loss; only the odd batch of the first epochs is longer."""

BETAS = (0.9, 0.98)
"""Memory of Adam for gradients and their squares. A long one for the squares, as is customary,
lets the large gradients of the beginning hold back the rest of a short training: 7 % more error."""


class Adam:
    """Moves parameters, which become parts of one row, and an average after them."""

    def __init__(self, parameters: Sequence[Tensor], average: Sequence[Tensor]) -> None:
        """Remembers nothing yet.

        Args:
            parameters: that learn, of one type; they hold their gradients.
            average: of each, changed in place.
        """
        self.parameters = parameters
        self.row, self.average = _joined(parameters), _joined(average)
        self.means, self.squares = torch.zeros_like(self.row), torch.zeros_like(self.row)
        """Of gradients, and of their squares."""

    @torch.no_grad()
    def step(self, count: int, rate: float, decay: float) -> None:
        """Takes a step along the gradient that the parameters hold.

        Args:
            count: of the step, from one.
            rate: the step size.
            decay: of the average.
        """
        gradient = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters]
        )
        length = torch.linalg.vector_norm(gradient)
        # What the optimizer of torch does, which takes three times as long to get there.
        torch._fused_adamw_(
            [self.row],
            [gradient],
            [self.means],
            [self.squares],
            [],
            [torch.full((), float(count), device=length.device)],
            lr=rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            grad_scale=(length / CLIP).clamp_min(1.0).float(),
        )
        self.average.lerp_(self.row, 1.0 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered of each parameter, by name."""
        sizes = [each.numel() for each in self.parameters]
        return {
            f"optimizer.{index}.{name}": part
            for name, row in (("exp_avg", self.means), ("exp_avg_sq", self.squares))
            for index, part in enumerate(row.split(sizes))
        }


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """All parameters in one row, of which they become parts."""
    row = torch.cat([each.detach().flatten() for each in parameters])
    for each, part in zip(parameters, row.split([p.numel() for p in parameters]), strict=True):
        each.data = part.view_as(each)
    return row

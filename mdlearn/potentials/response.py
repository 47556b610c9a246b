"""How an atom's features answer to what the atom hears; three networks share it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu


class Response(nn.Module):
    """A hidden layer on features and messages, less what it gives for the isolated atom.

    silu(W h + M m + b) - silu(W h₀ + b), where h₀ are the features that the element starts from. It
    is exactly zero for an atom that has heard nothing, whatever the weights: so linear maps without
    a bias, put after it, change the features of an atom by its neighbors alone.
    """

    def __init__(self, features: int, heard: int) -> None:
        super().__init__()
        self.own = nn.Linear(features, features)
        self.heard = nn.Linear(heard, features, bias=False)

    def forward(self, h: Tensor, heard: Tensor, start: Tensor) -> Tensor:
        """The response of every atom.

        Args:
            h: (n_atoms, F), features.
            heard: (n_atoms, H), zero for an atom without neighbors.
            start: (n_atoms, F), the features that the elements start from.

        Returns:
            (n_atoms, F).
        """
        # Both terms are of one shape: of different shapes, even equal rows can differ in a bit.
        response: Tensor = silu(self.own(h) + self.heard(heard)) - silu(self.own(start))
        return response

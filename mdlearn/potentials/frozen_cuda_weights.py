"""The weights of the default network as the kernels of a GPU have them."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from mdlearn.potentials.equivariant import DEGREE, Equivariant
from mdlearn.potentials.frozen_equivariant import loop_weights
from mdlearn.potentials.kernels import layout
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.triton_atoms import POINTS
from mdlearn.potentials.kernels.triton_layout import Weights
from mdlearn.potentials.spherical import SphericalHarmonics, degrees, sphere_grid


def device_weights(network: Equivariant) -> Weights:
    """The weights of a network where it is, in the order and the shapes of the kernels."""
    host = loop_weights(deepcopy(network).cpu())
    like = network.wall.start
    degree = np.array(degrees(DEGREE))
    damping = host.table[: len(degree), None, None]
    mix = host.mix[:, degree] * damping
    speak_back = host.speak_back[:, degree] * damping
    # From bundles of features to features.
    n_messages, bundles = host.filters.shape[:2]
    filters = host.filters.reshape(n_messages, bundles, 2, layout.LANES, layout.LANES)
    filters = filters.transpose(0, 3, 2, 1, 4).reshape(
        n_messages, layout.LANES, 2 * bundles * layout.LANES
    )
    hidden = np.concatenate([host.hidden, host.linear[:, None]], 1)
    points, point_weights = sphere_grid()
    evaluate = SphericalHarmonics(DEGREE)(torch.from_numpy(points))[0].numpy()
    missing = ((0, POINTS.value - len(points)), (0, 0))

    def tensor(values: Array, dtype: torch.dtype = like.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=like.device)

    return Weights(
        mix=tensor(mix),
        mix_back=tensor(mix.swapaxes(-1, -2)),
        element=tensor(host.element),
        speak=tensor(speak_back.swapaxes(-1, -2)),
        speak_back=tensor(speak_back),
        gate=tensor(host.gate),
        gate_back=tensor(host.gate_back),
        gate_bias=tensor(host.gate_bias),
        said=tensor(host.said),
        filters=tensor(filters),
        hidden=tensor(hidden),
        hidden_back=tensor(hidden.T),
        hidden_bias=tensor(np.pad(host.hidden_bias, ((0, 0), (0, 1)))),
        out=tensor(np.pad(host.out, (0, 1))),
        evaluate=tensor(np.pad(evaluate, missing)),
        project=tensor(np.pad(evaluate * point_weights[:, None], missing)),
        wall=tensor(host.wall, torch.float64),
        frequency_weight=tensor(host.frequency_weight, torch.float64),
        reference=tensor(host.reference, torch.float64),
    )

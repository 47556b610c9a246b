"""Prints the names of the kernels for a GPU, after Triton has made its intermediate form of them.

It takes no GPU. Arguments are those that the frozen network launches its kernels with.
"""

from __future__ import annotations

import re
import struct
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton
from checks import molecule, random_network
from triton._C.libtriton import ir, passes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from mdlearn.atoms import to_system
from mdlearn.guards import watch
from mdlearn.integrators import csvr, langevin, nose_hoover, velocity_verlet
from mdlearn.neighbors import build
from mdlearn.potentials import frozen_cuda, frozen_cuda_equivariant, frozen_cuda_filters
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.kernels import triton_motion, triton_systems
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.schnet import SchNet
from mdlearn.recorded import RecordedSteps
from mdlearn.simulate import Lists, isolated, start

TARGET = GPUTarget("cuda", 80, 32)
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
NUMBERS = re.compile(r"arith\.constant (?:dense<)?([-+.\dE]+)>? : (?:tensor<\S+x)?f64")
"""Of 64 bits, in what Triton makes of a kernel."""


def is_rounded(number: float) -> bool:
    """Whether it was one of 32 bits, and none that is there as such, like a half."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    (back,) = struct.unpack("<f", struct.pack("<f", number))
    return bool(back == number and bits & 0x7FF)


class Compiled:
    """In the place of a kernel: is compiled where that is launched, and not run."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *arguments: Any, **options: Any) -> None:
        given = dict(zip(self.kernel.arg_names, arguments, strict=True))
        constants = {each.name for each in self.kernel.params if each.is_constexpr}
        signature = {name: kind(value) for name, value in given.items()}
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(self.kernel, signature, {name: given[name] for name in constants})
        backend = make_backend(TARGET)
        chosen = backend.parse_options(options)
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        generate = backend.get_codegen_implementation(chosen)
        made = source.make_ir(TARGET, chosen, generate, backend.get_module_map(), context)
        manager = ir.pass_manager(context)
        passes.common.add_canonicalizer(manager)  # which brings constants to where they are used
        manager.run(made, "canonicalize")
        # A number that is given to a variable has 32 bits, and spoils what has 64.
        rounded = [each for each in map(float, NUMBERS.findall(str(made))) if is_rounded(each)]
        assert not rounded, f"{self.kernel.__name__}: {rounded}"
        print(self.kernel.__name__)


def kind(value: Any) -> str:
    return POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i64"


def compiled(module: ModuleType) -> SimpleNamespace:
    """Its kernels, and those only."""
    kernels = {n: k for n, k in vars(module).items() if isinstance(k, triton.JITFunction)}
    return SimpleNamespace(**{name: Compiled(kernel) for name, kernel in kernels.items()})


for name in ("geometry", "pair", "atom"):
    setattr(frozen_cuda_equivariant, name, compiled(getattr(frozen_cuda_equivariant, name)))
frozen_cuda_filters.kernel = compiled(frozen_cuda_filters.kernel)
frozen_cuda.geometry = frozen_cuda_filters.geometry = frozen_cuda_equivariant.geometry
for module, names in (
    (triton_systems, ("add_up", "look_at")),
    (triton_motion, ("depart", "arrive", "book", "thermalize")),
):
    for name in names:
        setattr(module, name, Compiled(getattr(module, name)))
system = to_system(molecule("H2O"))
for dtype in (torch.float32, torch.float64):
    network = random_network(Equivariant).to(dtype)
    lists = build(system, network.cutoff)
    frozen_cuda_equivariant.FrozenEquivariantOnGPU(network).evaluate(system, lists)
    for architecture in (SchNet, PaiNN):
        filtered = random_network(architecture).to(dtype)
        frozen_cuda_filters.FrozenFiltersOnGPU(filtered).evaluate(system, lists)
for integrator in (velocity_verlet(0.1), langevin(0.1, 0.1), csvr(0.1, 1.0), nose_hoover(0.1, 1.0)):
    dynamics = isolated(random_network(Equivariant), integrator, system)
    first = start(dynamics, system, torch.zeros_like(system.positions))
    lists = Lists(first.neighbors, watch(first.neighbors, system, None, 0.0))
    RecordedSteps(dynamics, first.state, lists, first.conserved)._step()

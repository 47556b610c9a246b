"""The command line: one verb a file. The only part of the package that knows click."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from importlib import import_module

import click

from mdlearn import __version__
from mdlearn.errors import MDLearnError, is_out_of_memory

MMAP_MAX, TRIM_THRESHOLD = -4, -1
"""Parameters of glibc's `mallopt`."""
VERBS = {
    "demo": "train on bundled frames, simulate, plot: the whole road in five minutes",
    "train": "train a potential on labelled frames",
    "simulate": "run molecular dynamics with a trained potential",
    "relax": "bring a structure to a minimum of the energy, with or without its cell",
    "evaluate": "measure the errors of a model on labelled frames",
    "check": "measure what a model promises: symmetries, derivatives, conservation",
    "data": "check, convert, split and pack labelled frames",
    "info": "say what a model or a trajectory holds",
}

DYNAMICS = "simulate"
"""That compiles the most before it begins."""


class Verbs(click.Group):
    """Imports a verb when it is called, so that --help does not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of a name."""
        if cmd_name not in VERBS:
            return None
        if cmd_name == DYNAMICS:  # to import torch takes as long as to compile a neighbor list
            from mdlearn.potentials.beforehand import LISTS, MOTION, begin

            begin(LISTS)
            begin(MOTION)
        command = import_module(f"mdlearn.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="mdlearn")
@click.pass_context
def group(ctx: click.Context, debug: bool) -> None:
    r"""Molecular dynamics with learned potentials.

    \b
    mdlearn train frames.xyz               a network, and forces by its derivative
    mdlearn simulate frames-run start.xyz  dynamics with it; an H5MD trajectory

    Quantities are in fs, K, Å and eV. Exit codes: 0 ok, 1 a bug, 2 usage, 3 data, 4 model, 5
    unstable, 6 input/output, 7 resources, 130 and 143 interrupted.
    """
    ctx.obj = debug


def main() -> None:
    """Entry point: runs a verb, and turns what it raises into one line and an exit code."""
    debug = "--debug" in sys.argv[1:2]
    keep_freed_memory()
    try:
        code = group.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        sys.exit(130)
    except MDLearnError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        if is_out_of_memory(error):
            _complain("out of memory; use a smaller --batch-atoms or a smaller system")
            sys.exit(7)
        _complain(
            f"{type(error).__name__}: {error}; this is a bug of mdlearn:"
            " run again as `mdlearn --debug ...` and report the traceback"
        )
        sys.exit(1)


def keep_freed_memory() -> None:
    """Has memory that is freed stay with this process until it ends, where the library can.

    Otherwise every large array comes from the kernel, page by page, and goes back: a seventh of the
    time of a neighbor list for 32,000 atoms, which is of the same size as the one before.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # glibc has it
            library = ctypes.CDLL(None)
            library.mallopt(MMAP_MAX, 0)
            library.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def _complain(message: str) -> None:
    print(f"mdlearn: {message}", file=sys.stderr)

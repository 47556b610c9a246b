"""What the documentation tells people to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from mdlearn import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def commands() -> list[str]:
    """Every call of mdlearn in a code block of the documentation."""
    text = "\n".join(block for page in PAGES for block in blocks(page, "bash"))
    lines = text.replace("\\\n", " ").splitlines()
    found = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [each for each in found if each.startswith("mdlearn ")]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_command_is_one(command: str) -> None:
    verb, *arguments = shlex.split(command)[1:]
    known = cli.group.get_command(click.Context(cli.group), verb)
    assert known is not None
    known.make_context(verb, arguments)  # raises for an option or a value that does not exist


def test_readme_has_the_main_job() -> None:
    assert {shlex.split(each)[1] for each in commands()} >= {"demo", "train", "simulate"}


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdlearn.cli.demo import DemoConfig, run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mdlearn.cli.ensembles.SimulateConfig.target", 40)
    assert run(DemoConfig(budget_min=0.05)) == 0
    for picture in ("forces.png", "dynamics.png"):
        assert (tmp_path / "mdlearn-demo" / picture).stat().st_size > 10_000
    (block,) = blocks(ROOT / "README.md", "python")
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target

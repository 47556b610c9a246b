"""What many packed frames cost: memory and time of `data check` and `train` on 100,000 of them.

    python benchmarks/packed_memory.py ethanol.xyz [--frames 100000] [--noise 0.05]

Frames are repeated, each time with other noise on their positions, into one packed file. Then both
verbs run on it, each in a process of its own whose memory (resident, private) is sampled twice a
second: `mdlearn data check` on all frames, and `mdlearn train`, one epoch of a cheap model, so that
what it does before the first step and between steps is seen and not the network. It is interrupted
after so many minutes of training. Findings that `data check` refuses, since the labels are not
those of the noise, are accepted in the training.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch

from mdlearn.atoms import read_frames
from mdlearn.packing import PackedWriter

EVERY_S = 0.5


class Sample(NamedTuple):
    """The memory of a process at one moment."""

    seconds: float
    """Since it was started."""
    processor: float
    """Seconds that it had the processor; other programs may have it, too."""
    megabytes: float
    begun: bool
    """Whether it is past its start-up."""


def pack(source: Path, target: Path, count: int, noise: float) -> None:
    """Packs frames again and again, with noise, Å, on all positions."""
    frames, keys = read_frames(source)
    generator = torch.Generator().manual_seed(0)
    with PackedWriter(target, keys, [source]) as writer:
        for n in range(count):
            frame = frames[n % len(frames)]
            x = frame.system.positions
            moved = x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            writer.append(frame._replace(system=frame.system._replace(positions=moved)))


def watch(command: list[str], folder: Path, sign: Path, seconds: float) -> tuple[list[Sample], str]:
    """Runs a command and samples its memory.

    Args:
        command: of mdlearn.
        folder: to run it in.
        sign: a file that is there once it has begun.
        seconds: after which it is interrupted, from then on.
    """
    samples: list[Sample] = []
    tick = os.sysconf("SC_CLK_TCK")
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "mdlearn", *command], cwd=folder, stdout=out, stderr=err
        )
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            rss = [line for line in status.splitlines() if line.startswith("RssAnon")]
            now = time.monotonic() - began
            if rss:
                times = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
                processor = (int(times[11]) + int(times[12])) / tick
                megabytes = int(rss[0].split()[1]) / 1e3
                samples.append(Sample(now, processor, megabytes, sign.exists()))
            first = next((each.seconds for each in samples if each.begun), now)
            if now - first > seconds:
                process.send_signal(signal.SIGINT)
                process.wait()
            time.sleep(EVERY_S)
    if process.returncode not in (0, 3, 128 + signal.SIGINT):
        raise SystemExit((folder / "err").read_text())
    return samples, (folder / "out").read_text()


def describe(name: str, samples: list[Sample]) -> None:
    """Prints what became of the memory."""
    seconds, processor, megabytes, _ = np.array(samples).T
    slope = np.polyfit(seconds, megabytes, 1)[0] * 60.0
    print(
        f"| {name} | {np.ptp(seconds):.0f} | {np.ptp(processor):.0f} | {megabytes[0]:.0f} |"
        f" {np.median(megabytes):.0f} | {megabytes.max():.0f} | {slope:+.2f} |"
    )


def main() -> None:
    """Prints a table, and writes all samples as CSV and as a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--noise", type=float, default=0.05, help="Å")
    parser.add_argument("--model", default="composition+lennard-jones")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training at most")
    parser.add_argument("--csv", type=Path, default=Path("packed-memory.csv"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        pack(options.source, folder / "frames.h5", options.frames, options.noise)
        print(f"packed in {time.monotonic() - began:.0f} s")
        check = ["data", "check", "frames.h5", "--json"]
        checked, found = watch(check, folder, folder / "frames.h5", math.inf)
        refused = json.loads(found)["refused"]
        print("refused:", ", ".join(refused) or "nothing")
        train = ["train", "frames.h5", "--model", options.model, "--epochs", "1"]
        accept = ["--accept", ",".join(refused)] if refused else []
        begun = folder / "frames-run" / "config.toml"
        trained, _ = watch(train + accept, folder, begun, 60.0 * options.minutes)
    parts = {
        "data check": checked,
        "train, before the first step": [each for each in trained if not each.begun],
        "train": [each for each in trained if each.begun],
    }
    print("| | s | of the processor | MB at the start | median | peak | slope, MB/min |")
    print("|---|---|---|---|---|---|---|")
    for label, samples in parts.items():
        describe(label, samples)
    with options.csv.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["part", "seconds", "of the processor", "MB"])
        for label, samples in parts.items():
            writer.writerows(
                (label, f"{x.seconds:.2f}", f"{x.processor:.2f}", f"{x.megabytes:.1f}")
                for x in samples
            )
    figure, axes = plt.subplots(figsize=(6.0, 3.5), layout="constrained")
    for label, samples in parts.items():
        axes.plot([x.seconds for x in samples], [x.megabytes for x in samples], label=label)
    axes.set(xlabel="time (s)", ylabel="memory (MB)", ylim=(0.0, None))
    axes.legend(frameon=False)
    figure.savefig(options.csv.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()

"""What watching costs: a run whose curves a training panel follows against the same run that nobody watches, and how soon Start, edits and Stop act.

Each run is a process of its own, as the studio starts them, with the same settings and threads; watched and unwatched runs alternate, and the last
weights must be equal to the bit. The page itself is not part of it: what a browser on the same machine draws comes on top.
By hand: `python tests/benchmarks/studio.py`."""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from cnnbench.config import replace_all
from cnnbench.control import prepare_again, start_run_process
from cnnbench.core import describe_machine
from cnnbench.experiment import Edited, Experiment, RunEnd, StepEnd, load_checkpoint, named_checkpoint, read_log, request_edit
from cnnbench.monitor import training_panel
from cnnbench.ui import Desk


def until(told, seconds: float = 600.0) -> float:
    "Seconds until `told()`."
    start = time.perf_counter()
    while not told():
        if time.perf_counter() - start > seconds: raise SystemExit("It took too long.")
        time.sleep(0.005)
    return time.perf_counter() - start


def steps(folder: Path) -> list[tuple[float, StepEnd]]: return [held for held in read_log(folder) if isinstance(held[1], StepEnd)]


def has(folder: Path, kind: type) -> bool: return any(isinstance(record, kind) for _, record in read_log(folder))


def trained(experiment: Experiment, root: Path, watched: bool) -> tuple[float, dict]:
    "Steps a second of a run, and its last weights."
    ticket = start_run_process(experiment, root)
    panel = None
    if watched:
        desk = Desk(experiment, prepare_again, root)
        panel, desk.run = training_panel(desk), ticket.folder
    until(lambda: not ticket.alive)
    if panel is not None: panel.view.watcher.close()
    found, last = steps(ticket.folder), named_checkpoint(ticket.folder, "last")
    assert last is not None
    return (len(found) - 1) / (found[-1][0] - found[0][0]), load_checkpoint(last)["model"]


def promptness(experiment: Experiment, root: Path) -> None:
    "Print how soon a run takes its first step, an edit and a stop."
    start = time.perf_counter()
    ticket = start_run_process(replace_all(experiment, {"name": "prompt", "train.epochs": 1000}), root)
    until(lambda: (ticket.folder / "log.jsonl").exists() and steps(ticket.folder))
    print(f"  from Start to the first step: {time.perf_counter() - start:.1f} s (at most 6 s wanted)")
    request_edit(ticket.folder, "train.lr", 1e-3)
    print(f"  an edit is done after {until(lambda: has(ticket.folder, Edited)):.2f} s (at most 0.5 s or a step wanted)")
    request_edit(ticket.folder, "stop")
    print(f"  a stop is done after {until(lambda: has(ticket.folder, RunEnd)):.2f} s (at most 0.5 s or a step wanted)")
    until(lambda: not ticket.alive)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="alternating pairs of runs")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    print(f"{describe_machine()['processor']}, {os.cpu_count()} cores; torch {torch.__version__}")
    experiment = replace_all(Experiment(), {"train.epochs": options.epochs, "train.precision": "fp32", "train.layout": "channels_last"})
    with tempfile.TemporaryDirectory() as held:
        ratios = []
        for number in range(options.rounds):
            alone, weights = trained(replace_all(experiment, {"name": f"alone{number}"}), Path(held), watched=False)
            seen, same = trained(replace_all(experiment, {"name": f"seen{number}"}), Path(held), watched=True)
            equal = all(torch.equal(weights[name], same[name]) for name in weights)
            ratios.append(seen / alone)
            bits = "equal to the bit" if equal else "DIFFERENT"
            print(f"  {alone:.1f} steps/s alone, {seen:.1f} watched: {seen / alone:.3f} times; weights {bits}", flush=True)
        print(f"  median {statistics.median(ratios):.3f} (at least 0.95 wanted: {'reached' if statistics.median(ratios) >= 0.95 else 'MISSED'})")
        promptness(experiment, Path(held))


if __name__ == "__main__": main()

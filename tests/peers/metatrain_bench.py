"""Kilnbox beside metatrain: the same options, the same data, the two programs in turn on the same machine.

    cargo xtask bench vs-metatrain [--repeats 3] [--epochs 20] [--options FILE.yaml] [--python PYTHON]
    cargo xtask bench vs-metatrain --accuracy      # 100 epochs with three seeds: errors on the test set
    cargo xtask bench start                        # only the time from the program's start to its first training step

metatrain runs with PYTHON; without one, a virtual environment is made for it in `target/metatrain`. Every figure is a median over the
repeats, every ratio Kilnbox over metatrain.

- epoch: wall time between the lines of successive epochs in the log, the first two left out;
- start: from the start of the process to the end of the first optimizer step, in metatrain by PyTorch's own hook;
- memory: the largest resident set of the process over its whole run, the final evaluation included.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
METATRAIN = "metatrain[soap-bpnn]==2026.4.1"

# Runs metatrain's command line and says when the first optimizer step has ended.
DRIVER = """
import sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook

def said(optimizer, arguments, keywords):
    print(f"timing first-step {time.time():.6f}", flush=True)
    handle.remove()

handle = register_optimizer_step_post_hook(said)
from metatrain.__main__ import main
sys.argv = ["mtt"] + sys.argv[1:]
main()
"""

EPOCH = re.compile(r"Epoch:\s+(\d+) \|")
FIRST_STEP = re.compile(r"^timing first-step ([0-9.]+)", re.MULTILINE)
EVALUATED = re.compile(r"Evaluating (\w+) dataset")
ENERGY = re.compile(r"energy RMSE \(per atom\): ([0-9.e+-]+) (\S+)")
FORCES = re.compile(r"(?:positions_gradients|forces) RMSE: ([0-9.e+-]+)")


class Run:
    """One training: its times, its memory and its errors on the test set."""

    def __init__(self, command, options, overrides, environment):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            # Paths in options are relative to the folder that one works in: ours to the repository, others to their own.
            root = REPOSITORY if options.is_relative_to(REPOSITORY) else options.parent
            name = options.relative_to(root)
            for entry in (root / name.parts[0],) if len(name.parts) > 1 else root.iterdir():
                (folder / entry.name).symlink_to(entry.resolve())
            overrides = [part for override in overrides for part in ("-r", override)]
            command = [*command, "train", name, *overrides]
            started = time.time()
            process = subprocess.Popen(
                command, cwd=folder, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            lines, epochs = [], {}
            for line in process.stdout:
                lines.append(line)
                if match := EPOCH.search(line):
                    epochs[int(match.group(1))] = time.time()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        output = "".join(lines)
        if process.returncode != 0:
            sys.exit(f"`{' '.join(map(str, command))}` failed:\n{output}")
        times = [epochs[epoch] - epochs[epoch - 1] for epoch in sorted(epochs) if epoch >= 2]
        self.epoch = statistics.median(times) if times else float("nan")
        self.start = float(FIRST_STEP.search(output).group(1)) - started
        self.memory = usage.ru_maxrss / 1024
        evaluated = output[output.rindex("Evaluating test dataset") :] if "Evaluating test dataset" in output else ""
        self.energy = float(match.group(1)) if (match := ENERGY.search(evaluated)) else float("nan")
        self.forces = float(match.group(1)) if (match := FORCES.search(evaluated)) else float("nan")


def metatrain_python():
    """The Python of a virtual environment with metatrain, made if need be."""
    folder = REPOSITORY / "target" / "metatrain"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {METATRAIN} in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", METATRAIN], check=True)
        (folder / "complete").touch()
    return python


def default_options():
    """The reference set of 100 ethanol frames where it is present, else our own."""
    reference = REPOSITORY.parent / "shared" / "data" / "soap-bpnn-ethanol.yaml"
    return reference if reference.exists() else REPOSITORY / "fixtures" / "ethanol" / "options.yaml"


def show(name, unit, kilnbox, metatrain):
    ours, theirs = statistics.median(kilnbox), statistics.median(metatrain)
    print(f"soap-bpnn {name}: kilnbox {ours:.3f} {unit}, metatrain {theirs:.3f} {unit}")
    print(f"ratio soap-bpnn {name}, kilnbox over metatrain = {ours / theirs:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kilnbox", type=pathlib.Path, required=True, help="the program; `cargo xtask bench` gives it")
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has metatrain")
    parser.add_argument("--options", type=pathlib.Path, default=default_options())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--start-only", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    arguments = parser.parse_args()

    python = arguments.python or metatrain_python()
    metatrain = [python, "-u", "-W", "ignore", "-c", DRIVER]
    kilnbox = [arguments.kilnbox]
    options = arguments.options.resolve()
    epochs = arguments.epochs or (100 if arguments.accuracy else 1 if arguments.start_only else 20)
    repeats = 3 if arguments.accuracy else arguments.repeats
    print(f"{options}, {epochs} epochs, {repeats} runs each, {len(os.sched_getaffinity(0))} processors", flush=True)

    runs = {"kilnbox": [], "metatrain": [], "cold": []}
    with tempfile.TemporaryDirectory() as cache:
        environment = {"KILNBOX_TIMING": "1", "XDG_CACHE_HOME": cache}
        for repeat in range(repeats):
            overrides = [f"architecture.training.num_epochs={epochs}", "architecture.training.log_interval=1"]
            overrides += [f"seed={repeat}"]
            if not arguments.accuracy:
                # A cache of its own for each first run: the architecture is compiled.
                with tempfile.TemporaryDirectory() as empty:
                    short = ["architecture.training.num_epochs=1", f"seed={repeat}"]
                    runs["cold"].append(Run(kilnbox, options, short, environment | {"XDG_CACHE_HOME": empty}))
                if repeat == 0:
                    Run(kilnbox, options, ["architecture.training.num_epochs=1"], environment)
            runs["metatrain"].append(Run(metatrain, options, overrides, {}))
            runs["kilnbox"].append(Run(kilnbox, options, overrides, environment))

    def of(program, quantity):
        return [getattr(run, quantity) for run in runs[program]]

    if arguments.accuracy:
        for name, quantity in [("test energy RMSE per atom", "energy"), ("test forces RMSE", "forces")]:
            for program in ["kilnbox", "metatrain"]:
                values = of(program, quantity)
                each = ", ".join(f"{value:.4f}" for value in values)
                print(f"soap-bpnn {name}, {program}: {each}; mean {statistics.mean(values):.4f}")
            ratio = statistics.mean(of("kilnbox", quantity)) / statistics.mean(of("metatrain", quantity))
            print(f"ratio soap-bpnn {name}, kilnbox over metatrain = {ratio:.3f}", flush=True)
        return
    if not arguments.start_only:
        show("train epoch", "s", of("kilnbox", "epoch"), of("metatrain", "epoch"))
        show("peak memory", "MiB", of("kilnbox", "memory"), of("metatrain", "memory"))
    show("start to first step", "s", of("kilnbox", "start"), of("metatrain", "start"))
    show("start to first step with an empty cache", "s", of("cold", "start"), of("metatrain", "start"))


if __name__ == "__main__":
    main()

"""Kilnbox beside metatrain: the same options, the same data, the two programs in turn on the same machine.

    cargo xtask bench vs-metatrain [--architecture soap-bpnn pet] [--repeats 3] [--epochs 20] [--options FILE.yaml] [--python PYTHON]
    cargo xtask bench vs-metatrain --device cuda   # both on an accelerator: cuda, metal or vulkan
    cargo xtask bench vs-metatrain --accuracy      # all epochs of the options with three seeds: errors on the test set
    cargo xtask bench start                        # only the time from the program's start to its first training step

Without --architecture, all are compared that both programs have. metatrain runs with PYTHON; without one, a virtual environment is made for it
in `target/metatrain`. Every figure is a median over the repeats, every ratio Kilnbox over metatrain.

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
FORCES = re.compile(r"(?:positions_gradients|forces) RMSE: ([0-9.e+-]+) (\S+)")

# The options of each architecture's comparison, by the name of its folder in `guests/`: those of the reference data, and where that is absent our own
# with the architecture's name put in. Whoever adds an architecture that metatrain has adds a line.
OURS = REPOSITORY / "fixtures" / "ethanol" / "options.yaml"
REFERENCE = REPOSITORY.parent / "shared" / "data"
OPTIONS = {
    "soap-bpnn": [REFERENCE / "soap-bpnn-ethanol.yaml", OURS],
    "pet": [REFERENCE / "pet-ethanol.yaml", OURS],
}
SEEDS = 3
# What metatrain calls a device where it is not our name; one card has several ways to it.
DEVICES_OF_METATRAIN = {"metal": "mps", "vulkan": "cuda", "webgpu": "cuda"}


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
        self.energy, self.energy_unit = measured(ENERGY, evaluated)
        self.forces, self.forces_unit = measured(FORCES, evaluated)


def measured(pattern, text):
    """A number and its unit; metatrain shows eV as meV."""
    if not (match := pattern.search(text)):
        return float("nan"), ""
    value, unit = float(match.group(1)), match.group(2)
    return (value / 1000, unit.replace("meV", "eV")) if "meV" in unit else (value, unit)


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


def options_of(architecture):
    """The options to compare an architecture with, the first that is there."""
    return next(path for path in OPTIONS[architecture] if path.exists())


def compared(arguments):
    """Pairs of an architecture's name and its options."""
    if arguments.options:
        options = arguments.options.resolve()
        names = arguments.architecture or [said_in(options, "name").replace("_", "-")]
        return [(name, options) for name in names]
    # An architecture may be in the table before it is in this checkout.
    present = [name for name in OPTIONS if (REPOSITORY / "guests" / name).is_dir()]
    return [(name, options_of(name)) for name in arguments.architecture or present]


def said_in(options, key):
    """The first value of a key; enough for options that this script chooses, and needs no reader of YAML."""
    match = re.search(rf"^\s+{key}:\s*(\S+)", options.read_text(), re.MULTILINE)
    return match.group(1) if match else sys.exit(f"`{options}` does not say `{key}`")


class Comparison:
    """Runs of both programs with one architecture."""

    def __init__(self, architecture, options, arguments, metatrain):
        self.architecture, self.options, self.arguments = architecture, options, arguments
        self.programs = {"kilnbox": [arguments.kilnbox.absolute()], "metatrain": metatrain}
        self.repeats = SEEDS if arguments.accuracy else arguments.repeats
        default = said_in(options, "num_epochs") if arguments.accuracy else 1 if arguments.start_only else 20
        self.epochs = arguments.epochs or int(default)
        self.runs = {"kilnbox": [], "metatrain": [], "cold": []}

    def run(self):
        """Runs both programs in turn, so that a machine that slows down slows both."""
        with tempfile.TemporaryDirectory() as cache:
            for repeat in range(self.repeats):
                if not self.arguments.accuracy:
                    # A cache of its own for each first run: the architecture is compiled.
                    with tempfile.TemporaryDirectory() as empty:
                        self.runs["cold"].append(self.train("kilnbox", empty, repeat, 1))
                    if repeat == 0:
                        self.train("kilnbox", cache, repeat, 1)
                for program in ["metatrain", "kilnbox"]:
                    self.runs[program].append(self.train(program, cache, repeat, self.epochs))

    def train(self, program, cache, seed, epochs):
        overrides = {
            # Ours finds either spelling.
            "architecture.name": self.architecture.replace("-", "_"),
            "architecture.training.num_epochs": epochs,
            "architecture.training.log_interval": 1,
            "seed": seed,
        }
        if device := self.arguments.device:
            overrides["device"] = DEVICES_OF_METATRAIN.get(device, device) if program == "metatrain" else device
        environment = {"KILNBOX_TIMING": "1", "XDG_CACHE_HOME": cache} if program == "kilnbox" else {}
        return Run(self.programs[program], self.options, [f"{key}={value}" for key, value in overrides.items()], environment)

    def of(self, program, quantity):
        return [getattr(run, quantity) for run in self.runs[program]]

    def show(self, name, unit, kilnbox, metatrain):
        ours, theirs = statistics.median(kilnbox), statistics.median(metatrain)
        print(f"{self.architecture} {name}: kilnbox {ours:.3f} {unit}, metatrain {theirs:.3f} {unit}")
        print(f"ratio {self.architecture} {name}, kilnbox over metatrain = {ours / theirs:.3f}", flush=True)

    def show_speed(self):
        if not self.arguments.start_only:
            self.show("train epoch", "s", self.of("kilnbox", "epoch"), self.of("metatrain", "epoch"))
            self.show("peak memory", "MiB", self.of("kilnbox", "memory"), self.of("metatrain", "memory"))
        self.show("start to first step", "s", self.of("kilnbox", "start"), self.of("metatrain", "start"))
        self.show("start to first step with an empty cache", "s", self.of("cold", "start"), self.of("metatrain", "start"))

    def show_accuracy(self):
        for name, quantity in [("test energy RMSE per atom", "energy"), ("test forces RMSE", "forces")]:
            for program in ["kilnbox", "metatrain"]:
                values, (unit, *_) = self.of(program, quantity), self.of(program, f"{quantity}_unit")
                each = ", ".join(f"{value:.4f}" for value in values)
                spread = f"{min(values):.4f} to {max(values):.4f}"
                print(f"{self.architecture} {name}, {program}: {each}; mean {statistics.mean(values):.4f} {unit}, spread {spread}")
            ours, theirs = statistics.mean(self.of("kilnbox", quantity)), self.of("metatrain", quantity)
            place = "below" if ours < min(theirs) else "above" if ours > max(theirs) else "within"
            print(f"{self.architecture} {name}: the mean of kilnbox is {place} metatrain's spread")
            ratio = ours / statistics.mean(theirs)
            print(f"ratio {self.architecture} {name}, kilnbox over metatrain = {ratio:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kilnbox", type=pathlib.Path, required=True, help="the program; `cargo xtask bench` gives it")
    parser.add_argument("--architecture", nargs="+", choices=OPTIONS, metavar="NAME", help=f"of {', '.join(OPTIONS)}; all by default")
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has metatrain")
    parser.add_argument("--options", type=pathlib.Path, help="other options than those of the table")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="20 by default, and those of the options with --accuracy")
    parser.add_argument("--device", help="what both train on; by default what each takes without being told")
    parser.add_argument("--start-only", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    arguments = parser.parse_args()

    python = arguments.python or metatrain_python()
    metatrain = [python, "-u", "-W", "ignore", "-c", DRIVER]
    for architecture, options in compared(arguments):
        comparison = Comparison(architecture, options, arguments, metatrain)
        processors = len(os.sched_getaffinity(0))
        print(f"{architecture}: {options}, {comparison.epochs} epochs, {comparison.repeats} runs each, {processors} processors", flush=True)
        comparison.run()
        if arguments.accuracy:
            comparison.show_accuracy()
        else:
            comparison.show_speed()


if __name__ == "__main__":
    main()

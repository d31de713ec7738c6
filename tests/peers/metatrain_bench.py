"""Kilnbox beside metatrain: the same options, the same data, the two programs in turn on the same machine.

    cargo xtask bench vs-metatrain [--architecture soap-bpnn pet] [--data ethanol carbon] [--repeats 3] [--epochs 20] [--options FILE.yaml] [--python PYTHON]
    cargo xtask bench vs-metatrain --device cuda   # both on an accelerator: cuda, metal or vulkan
    cargo xtask bench vs-metatrain --device cuda --architecture pet --structures 1400 --batch-size 256 [--evaluation]
    cargo xtask bench vs-metatrain --accuracy      # all epochs of the options with three seeds: errors on the test set
    cargo xtask bench vs-metatrain --evaluation    # trained models on structures, one by one and in batches of 64
    cargo xtask bench start                        # only the time from the program's start to its first training step

With --structures, those of the data are repeated until there are so many, and a tenth is held out (models are evaluated on a thousand structures without it); with --batch-size, that is the size of batches.
Without --architecture, all are compared that both programs have; without --data, ethanol. Carbon, crystals of four atoms, is part of the reference data alone. metatrain
runs with PYTHON; without one, a virtual environment is made for it in `target/metatrain`. Every figure is a median over the repeats, every ratio Kilnbox over metatrain.

- epoch: wall time between the lines of successive epochs in the log, the first two left out;
- start: from the start of the process to the end of the first optimizer step, in metatrain by PyTorch's own hook. With an empty cache the architecture is compiled first,
  but for those whose code comes with the program, as users get it with --packaged;
- waiting for data: the part of the training in which it waits for a batch, as ours says;
- memory: the largest resident set of the process over its whole run, the final evaluation included;
- evaluation: milliseconds per atom for energies and forces, as each program says them itself: the mean over its batches.
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

from environment import REPOSITORY, metatrain_python

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
WAITED = re.compile(r"^timing waited-for-data ([0-9.]+)", re.MULTILINE)
FIRST_STEP = re.compile(r"^timing first-step ([0-9.]+)", re.MULTILINE)
EVALUATED = re.compile(r"Evaluating (\w+) dataset")
ENERGY = re.compile(r"energy RMSE \(per atom\): ([0-9.e+-]+) (\S+)")
FORCES = re.compile(r"(?:positions_gradients|forces) RMSE: ([0-9.e+-]+) (\S+)")
PER_ATOM = re.compile(r"[Ee]valuation time: .*\[([0-9.e+-]+) ± [0-9.e+-]+ ms per atom\]")

# The options of each comparison, by the data and the name of the architecture's folder in `guests/`: those of the reference data, and where that is absent our own
# with the architecture's name put in. Whoever adds an architecture that metatrain has adds a line.
OURS = REPOSITORY / "fixtures" / "ethanol" / "options.yaml"
REFERENCE = REPOSITORY.parent / "shared" / "data"
CARBON = pathlib.Path(__file__).parent / "carbon.yaml"
OPTIONS = {
    "ethanol": {
        "soap-bpnn": [REFERENCE / "soap-bpnn-ethanol.yaml", OURS],
        "pet": [REFERENCE / "pet-ethanol.yaml", OURS],
    },
    "carbon": {"soap-bpnn": [CARBON], "pet": [CARBON]},
}
SEEDS = 3
BATCHES = [1, 64]
# Metatrain warms up with ten batches that it does not count, and ours leaves out the first batch alone: of few structures, what is new to each thread would be all that is measured.
EVALUATED = 1000
# What metatrain calls a device where it is not our name; one card has several ways to it.
DEVICES_OF_METATRAIN = {"metal": "mps", "vulkan": "cuda", "webgpu": "cuda"}


def laid_out(folder, options, structures=None):
    """Puts a file of options into `folder`, and links all that it may name: paths in options are relative to the folder that one works in, which is the repository for
    ours, the folder of the data for those of carbon, and their own folder for others. With a number of structures, there are so many."""
    root = REFERENCE if options == CARBON else REPOSITORY if options.is_relative_to(REPOSITORY) else options.parent
    for entry in [root / "fixtures"] if root == REPOSITORY else root.iterdir():
        (folder / entry.name).symlink_to(entry.resolve())
    text = options.read_text()
    if structures:
        data = re.search(r"read_from: *(\S+)", text).group(1)
        repeat(folder / data, folder / "structures.xyz", structures)
        # The training set's section without the choice of some, and parts of it for the others.
        text = text[: text.index("validation_set:")] + "validation_set: 0.05\ntest_set: 0.05\n"
        text = re.sub(r"^  indices:.*\n", "", text.replace(f"read_from: {data}", "read_from: structures.xyz"), flags=re.MULTILINE)
    (folder / "benchmark.yaml").write_text(text)


def repeat(source, target, count):
    """Writes `count` structures, those of a file of extended XYZ again and again."""
    lines, frames = source.read_text().splitlines(keepends=True), []
    while lines:
        size = int(lines[0]) + 2
        frames.append("".join(lines[:size]))
        lines = lines[size:]
    target.write_text("".join(frames[k % len(frames)] for k in range(count)))


class Run:
    """One run of a program in a folder: what it said and when, and its memory."""

    def __init__(self, folder, command, environment=None):
        started = time.time()
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | (environment or {}), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        lines, epochs = [], {}
        for line in process.stdout:
            lines.append(line)
            if match := EPOCH.search(line):
                epochs[int(match.group(1))] = time.time()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.output = "".join(lines)
        if process.returncode != 0:
            sys.exit(f"`{' '.join(map(str, command))}` failed:\n{self.output}")
        times = [epochs[epoch] - epochs[epoch - 1] for epoch in sorted(epochs) if epoch >= 2]
        self.epoch = statistics.median(times) if times else float("nan")
        first_step = FIRST_STEP.search(self.output)
        self.start = float(first_step.group(1)) - started if first_step else float("nan")
        waited = WAITED.search(self.output)
        self.waited = float(waited.group(1)) if waited else float("nan")
        self.memory = usage.ru_maxrss / 1024
        # A dataset that is evaluated alone says so as well: the last line counts.
        per_atom = PER_ATOM.findall(self.output)
        self.per_atom = float(per_atom[-1]) if per_atom else float("nan")
        evaluated = self.output[self.output.rindex("Evaluating test dataset") :] if "Evaluating test dataset" in self.output else ""
        self.energy, self.energy_unit = measured(ENERGY, evaluated)
        self.forces, self.forces_unit = measured(FORCES, evaluated)


def measured(pattern, text):
    """A number and its unit; metatrain shows eV as meV."""
    if not (match := pattern.search(text)):
        return float("nan"), ""
    value, unit = float(match.group(1)), match.group(2)
    return (value / 1000, unit.replace("meV", "eV")) if "meV" in unit else (value, unit)


def options_of(data, architecture):
    """The options to compare an architecture with, the first that is there."""
    return next(path for path in OPTIONS[data][architecture] if path.exists())


def compared(arguments):
    """Triples of a title, an architecture's name and its options."""
    if arguments.options:
        options = arguments.options.resolve()
        names = arguments.architecture or [said_in(options, "name").replace("_", "-")]
        return [(name, name, options) for name in names]
    # An architecture may be in the table before it is in this checkout.
    present = [name for name in OPTIONS["ethanol"] if (REPOSITORY / "guests" / name).is_dir()]
    wanted = [(data, name) for data in arguments.data for name in arguments.architecture or present]
    return [(name if data == "ethanol" else f"{name} {data}", name, options_of(data, name)) for data, name in wanted]


def said_in(options, key):
    """The first value of a key; enough for options that this script chooses, and needs no reader of YAML."""
    match = re.search(rf"^\s+{key}:\s*(\S+)", options.read_text(), re.MULTILINE)
    return match.group(1) if match else sys.exit(f"`{options}` does not say `{key}`")


class Comparison:
    """Runs of both programs with one architecture."""

    def __init__(self, title, architecture, options, arguments, metatrain):
        self.title, self.architecture, self.options, self.arguments = title, architecture, options, arguments
        self.programs = {"kilnbox": [arguments.kilnbox.absolute()], "metatrain": metatrain}
        if arguments.packaged:
            self.programs["packaged"] = [arguments.packaged.absolute()]
        self.repeats = SEEDS if arguments.accuracy else arguments.repeats
        default = said_in(options, "num_epochs") if arguments.accuracy else 1 if arguments.start_only or arguments.evaluation else 20
        self.epochs = arguments.epochs or int(default)
        self.runs = {"kilnbox": [], "metatrain": [], "cold": [], "packaged": []}

    def run(self):
        """Runs both programs in turn, so that a machine that slows down slows both."""
        with tempfile.TemporaryDirectory() as cache:
            for repeat in range(self.repeats):
                if not self.arguments.accuracy:
                    # A cache of its own for each first run.
                    for program, runs in [("kilnbox", "cold"), ("packaged", "packaged")]:
                        if program in self.programs:
                            with tempfile.TemporaryDirectory() as empty:
                                self.runs[runs].append(self.train(program, empty, repeat, 1))
                    if repeat == 0:
                        self.train("kilnbox", cache, repeat, 1)
                for program in ["metatrain", "kilnbox"]:
                    self.runs[program].append(self.train(program, cache, repeat, self.epochs))

    def train(self, program, cache, seed, epochs):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            laid_out(folder, self.options, self.arguments.structures)
            return self.train_in(folder, program, cache, seed, epochs)

    def train_in(self, folder, program, cache, seed, epochs):
        overrides = {
            # Ours finds either spelling.
            "architecture.name": self.architecture.replace("-", "_"),
            "architecture.training.num_epochs": epochs,
            "architecture.training.log_interval": 1,
            "seed": seed,
        }
        if size := self.arguments.batch_size:
            overrides["architecture.training.batch_size"] = size
        if device := self.arguments.device:
            overrides["device"] = DEVICES_OF_METATRAIN.get(device, device) if program == "metatrain" else device
        environment = {} if program == "metatrain" else {"KILNBOX_TIMING": "1", "XDG_CACHE_HOME": cache}
        chosen = [part for key, value in overrides.items() for part in ("-r", f"{key}={value}")]
        return Run(folder, [*self.programs[program], "train", "benchmark.yaml", *chosen], environment)

    def run_evaluation(self):
        """Trains a model with each program, and evaluates each on all structures, in turn."""
        with tempfile.TemporaryDirectory() as folder:
            folders = {program: pathlib.Path(folder) / program for program in self.programs}
            for program, place in folders.items():
                place.mkdir()
                laid_out(place, self.options, self.arguments.structures)
                self.train_in(place, program, folder, 0, self.epochs)
                # What is read and what the energies and forces are called, as the training set has it.
                section = re.search(r"^training_set:\n((?: +.*\n)+)", (place / "benchmark.yaml").read_text(), re.MULTILINE).group(1)
                section = re.sub(r"^  indices:.*\n", "", section, flags=re.MULTILINE)
                data = re.search(r"read_from: *(\S+)", section).group(1)
                if not self.arguments.structures:
                    repeat(place / data, place / "evaluated.xyz", EVALUATED)
                    section = section.replace(f"read_from: {data}", "read_from: evaluated.xyz")
                (place / "evaluation.yaml").write_text(re.sub(r"^  ", "", section, flags=re.MULTILINE))
            models = {"kilnbox": "model.kiln", "metatrain": "model.pt"}
            device = self.arguments.device
            on_device = ["--device", device] if device else []
            for batch in [self.arguments.batch_size] if self.arguments.batch_size else BATCHES:
                runs = {program: [] for program in self.programs}
                for _ in range(self.repeats):
                    for program in ["metatrain", "kilnbox"]:
                        command = [*self.programs[program], "eval", models[program], "evaluation.yaml", "-b", str(batch), "-o", "predicted.xyz"]
                        # What its models need beside the file lies in a folder beside it.
                        # Metatrain takes a card where there is one.
                        command += ["-e", "extensions"] if program == "metatrain" else on_device
                        environment = {"XDG_CACHE_HOME": folder} if program == "kilnbox" else {}
                        runs[program].append(Run(folders[program], command, environment))
                ours, theirs = ([run.per_atom for run in runs[program]] for program in ["kilnbox", "metatrain"])
                self.show(f"evaluation per atom, batches of {batch}", "ms", ours, theirs, 4)
                ours, theirs = ([run.memory for run in runs[program]] for program in ["kilnbox", "metatrain"])
                self.show(f"peak memory of the evaluation, batches of {batch}", "MiB", ours, theirs)

    def of(self, program, quantity):
        return [getattr(run, quantity) for run in self.runs[program]]

    def show(self, name, unit, kilnbox, metatrain, digits=3):
        ours, theirs = statistics.median(kilnbox), statistics.median(metatrain)
        print(f"{self.title} {name}: kilnbox {ours:.{digits}f} {unit}, metatrain {theirs:.{digits}f} {unit}")
        print(f"ratio {self.title} {name}, kilnbox over metatrain = {ours / theirs:.3f}", flush=True)

    def show_speed(self):
        if not self.arguments.start_only:
            self.show("train epoch", "s", self.of("kilnbox", "epoch"), self.of("metatrain", "epoch"))
            waited = statistics.median(self.of("kilnbox", "waited"))
            print(f"{self.title} waiting for data: {100 * waited:.2f} % of kilnbox's training")
            self.show("peak memory", "MiB", self.of("kilnbox", "memory"), self.of("metatrain", "memory"))
        self.show("start to first step", "s", self.of("kilnbox", "start"), self.of("metatrain", "start"))
        self.show("start to first step with an empty cache", "s", self.of("cold", "start"), self.of("metatrain", "start"))
        if self.runs["packaged"]:
            self.show("start to first step with an empty cache, packaged", "s", self.of("packaged", "start"), self.of("metatrain", "start"))

    def show_accuracy(self):
        for name, quantity in [("test energy RMSE per atom", "energy"), ("test forces RMSE", "forces")]:
            for program in ["kilnbox", "metatrain"]:
                values, (unit, *_) = self.of(program, quantity), self.of(program, f"{quantity}_unit")
                each = ", ".join(f"{value:.4f}" for value in values)
                spread = f"{min(values):.4f} to {max(values):.4f}"
                print(f"{self.title} {name}, {program}: {each}; mean {statistics.mean(values):.4f} {unit}, spread {spread}")
            ours, theirs = statistics.mean(self.of("kilnbox", quantity)), self.of("metatrain", quantity)
            place = "below" if ours < min(theirs) else "above" if ours > max(theirs) else "within"
            print(f"{self.title} {name}: the mean of kilnbox is {place} metatrain's spread")
            ratio = ours / statistics.mean(theirs)
            print(f"ratio {self.title} {name}, kilnbox over metatrain = {ratio:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kilnbox", type=pathlib.Path, required=True, help="the program; `cargo xtask bench` gives it")
    parser.add_argument("--packaged", type=pathlib.Path, help="the program in a package, with compiled code beside it; `cargo xtask bench start` gives it")
    parser.add_argument("--architecture", nargs="+", choices=OPTIONS["ethanol"], metavar="NAME", help=f"of {', '.join(OPTIONS['ethanol'])}; all by default")
    parser.add_argument("--data", nargs="+", choices=OPTIONS, default=["ethanol"], metavar="NAME", help=f"of {', '.join(OPTIONS)}")
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has metatrain")
    parser.add_argument("--options", type=pathlib.Path, help="other options than those of the table")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="20 by default, and those of the options with --accuracy")
    parser.add_argument("--structures", type=int, help="how many; those of the data by default")
    parser.add_argument("--batch-size", type=int, help="of training and evaluation; by default that of the options, and 1 and 64")
    parser.add_argument("--device", help="what both train on; by default what each takes without being told")
    parser.add_argument("--start-only", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--evaluation", action="store_true")
    arguments = parser.parse_args()

    python = arguments.python or metatrain_python()
    metatrain = [python, "-u", "-W", "ignore", "-c", DRIVER]
    for title, architecture, options in compared(arguments):
        comparison = Comparison(title, architecture, options, arguments, metatrain)
        processors = len(os.sched_getaffinity(0))
        print(f"{title}: {options}, {comparison.epochs} epochs, {comparison.repeats} runs each, {processors} processors", flush=True)
        if arguments.evaluation:
            comparison.run_evaluation()
            continue
        comparison.run()
        if arguments.accuracy:
            comparison.show_accuracy()
        else:
            comparison.show_speed()


if __name__ == "__main__":
    main()

"""How cost and memory grow: with the atoms of one structure, and with the structures of one dataset.

    cargo xtask bench scale [--architecture soap-bpnn pet] [--atoms 1000000] [--structures 100000] [--figures docs/figures]

Models with default hypers are trained for an epoch on the copper of `fixtures/`, and then evaluate energies and forces: of crystals of copper of 10^2 atoms and more, one at a
time, and of datasets of 10^2 crystals of 4 atoms and more, in batches of 64. Every size is a process of its own. The figures are the mean time per atom that the
program says, and the largest resident set of the process. `--figures` writes them as CSV, with a plot of each beside it.
"""

import argparse
import csv
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

from environment import REPOSITORY, become

become("matplotlib")

import matplotlib  # noqa: E402

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

PER_ATOM = re.compile(r"evaluation time: .*\[([0-9.e+-]+) ± [0-9.e+-]+ ms per atom\]")
# Lattice constant and the size of random displacements, angstrom.
LATTICE, RATTLE = 3.62, 0.1
CORNERS = [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)]
# Enough atoms in all that the clock does not matter.
LEAST_ATOMS = 20_000
FIELDS = ["architecture", "series", "atoms", "structures", "milliseconds_per_atom", "mebibytes", "seconds"]


def write_crystals(path, repeats, structures, seed=0):
    """Copper, fcc, `repeats` cubic cells in each direction, with random displacements."""
    generator = random.Random(seed)
    size = repeats * LATTICE
    moved = lambda place, corner: (place + corner) * LATTICE + generator.uniform(-RATTLE, RATTLE)
    with path.open("w") as file:
        for _ in range(structures):
            file.write(f'{4 * repeats**3}\nLattice="{size} 0 0 0 {size} 0 0 0 {size}" Properties=species:S:1:pos:R:3 pbc="T T T"\n')
            for x in range(repeats):
                for y in range(repeats):
                    for z in range(repeats):
                        for a, b, c in CORNERS:
                            file.write(f"Cu {moved(x, a):.6f} {moved(y, b):.6f} {moved(z, c):.6f}\n")


def run(folder, command):
    """What the program said, its seconds and the largest memory that it took, in MiB."""
    started = time.time()
    process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, output, time.time() - started, usage.ru_maxrss / 1024


class Bench:
    """One trained model in a folder."""

    def __init__(self, program, architecture, folder):
        self.program, self.architecture, self.folder = program, architecture, folder
        (folder / "fixtures").symlink_to(REPOSITORY / "fixtures")
        changes = [f"architecture.name={architecture.replace('-', '_')}", "architecture.training.num_epochs=1"]
        overrides = [part for change in changes for part in ("-r", change)]
        code, output, *_ = run(folder, [program, "train", "fixtures/copper/options.yaml", *overrides])
        if code != 0:
            sys.exit(f"the training failed:\n{output}")
        (folder / "evaluation.yaml").write_text("systems:\n  read_from: crystals.xyz\n  length_unit: angstrom\n")

    def evaluate(self, series, repeats, structures, batch):
        """A row of figures, or none where the program says that there is too little of something."""
        write_crystals(self.folder / "crystals.xyz", repeats, structures)
        command = [self.program, "eval", "model.kiln", "evaluation.yaml", "-b", str(batch), "-o", "predicted.xyz"]
        code, output, seconds, memory = run(self.folder, command)
        atoms = 4 * repeats**3
        if code != 0:
            print(f"{self.architecture}: {structures} structures of {atoms} atoms cannot be evaluated:\n{output}", flush=True)
            return None
        per_atom = float(PER_ATOM.findall(output)[-1])
        print(f"{self.architecture}: {structures} structures of {atoms} atoms: {per_atom:.4f} ms per atom, {memory:.0f} MiB, {seconds:.1f} s", flush=True)
        return dict(zip(FIELDS, [self.architecture, series, atoms, structures, per_atom, round(memory), round(seconds, 2)]))


def ratios(rows, architecture):
    """Says how much an atom costs more in the largest structure than in one of a thousand, and what each further atom takes of memory."""
    series = [row for row in rows if row["architecture"] == architecture and row["series"] == "atoms" and row["atoms"] >= 500]
    if len(series) < 2:
        return
    first, last = series[0], series[-1]
    growth = last["milliseconds_per_atom"] / first["milliseconds_per_atom"]
    print(f"ratio {architecture} cost per atom, {last['atoms']} atoms over {first['atoms']} = {growth:.3f}")
    for smaller, larger in zip(series, series[1:]):
        each = (larger["mebibytes"] - smaller["mebibytes"]) * 1024 / (larger["atoms"] - smaller["atoms"])
        print(f"{architecture} memory from {smaller['atoms']} to {larger['atoms']} atoms: {each:.1f} KiB for each", flush=True)


def plot(rows, series, size, title, path):
    """Time per atom and memory over the size, both axes logarithmic."""
    figure, (times, memories) = plt.subplots(1, 2, figsize=(9, 3.6))
    for architecture in dict.fromkeys(row["architecture"] for row in rows):
        own = [row for row in rows if row["architecture"] == architecture and row["series"] == series]
        sizes = [row[size] for row in own]
        times.plot(sizes, [row["milliseconds_per_atom"] for row in own], "o-", label=architecture)
        memories.plot(sizes, [row["mebibytes"] for row in own], "o-", label=architecture)
    for axes, label in [(times, "ms per atom"), (memories, "peak memory, MiB")]:
        axes.set(xscale="log", yscale="log", xlabel=title, ylabel=label)
        axes.grid(True, alpha=0.3)
        axes.legend(frameon=False)
    # Costs that do not grow should look as if they did not.
    low, high = times.get_ylim()
    times.set_ylim(low / 3, high * 3)
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "kilnbox"
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kilnbox", type=pathlib.Path, required=True, help="the program; `cargo xtask bench` gives it")
    parser.add_argument("--architecture", nargs="+", default=["soap-bpnn", "pet"], metavar="NAME")
    parser.add_argument("--atoms", type=int, default=1_000_000, help="of the largest structure")
    parser.add_argument("--structures", type=int, default=100_000, help="of the largest dataset")
    parser.add_argument("--figures", type=pathlib.Path, help="a folder for CSV and plots")
    arguments = parser.parse_args()
    program, rows = arguments.kilnbox.absolute(), []
    for architecture in arguments.architecture:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(program, architecture, pathlib.Path(folder))
            for repeats in [3, 6, 14, 29, 63]:
                atoms = 4 * repeats**3
                if atoms <= 1.01 * arguments.atoms:
                    rows.append(bench.evaluate("atoms", repeats, max(1, LEAST_ATOMS // atoms), 1))
            for structures in [100, 1000, 10_000, 100_000, 1_000_000]:
                if structures <= arguments.structures:
                    rows.append(bench.evaluate("structures", 1, structures, 64))
        rows = [row for row in rows if row]
        ratios(rows, architecture)
    if arguments.figures:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        with (arguments.figures / "scale.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        plot(rows, "atoms", "atoms", "atoms of the structure", arguments.figures / "scale-atoms.svg")
        plot(rows, "structures", "structures", "structures of the dataset", arguments.figures / "scale-structures.svg")


if __name__ == "__main__":
    main()

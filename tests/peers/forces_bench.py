"""One call for energy and forces, as a simulation makes it: Kilnbox in process and through wasi-nn, metatrain's model in ASE.

    cargo xtask bench forces [--architecture soap-bpnn pet] [--molecules 1 111] [--rounds 5]

Each program trains a model with default hypers for an epoch on ethanol; then each does the same simulation (velocity Verlet) of one molecule of ethanol, and of 111 in a periodic
box, 999 atoms. Programs take turns; every figure is a median over the rounds. The time of a step is that of its one call, but for a few sums.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

from environment import REPOSITORY, become

become()
warnings.filterwarnings("ignore")

from metatrain_bench import DRIVER, OPTIONS, laid_out, options_of  # noqa: E402

# As `bench-forces` has them.
TIME_STEP, TEMPERATURE, WARM_UP = 0.1, 100.0, 5
# Milliseconds that each round should take at least.
ROUND = 2000


def train(folder, command, architecture, suffix):
    """The model that a program makes of the benchmark's options."""
    folder.mkdir()
    laid_out(folder, options_of("ethanol", architecture))
    chosen = ["-r", f"architecture.name={architecture.replace('-', '_')}", "-r", "architecture.training.num_epochs=1"]
    run = subprocess.run([*command, "train", "benchmark.yaml", *chosen], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if run.returncode != 0:
        sys.exit(f"`{' '.join(map(str, command))} train` failed:\n{run.stdout}")
    return folder / f"model.{suffix}"


class InAse:
    """metatrain's model as ASE's users have it."""

    def __init__(self, model, structure):
        import ase.io
        import ase.md.velocitydistribution
        from ase import units
        from ase.md.verlet import VelocityVerlet
        from metatomic_ase import MetatomicCalculator

        atoms = ase.io.read(structure)
        atoms.calc = MetatomicCalculator(str(model), extensions_directory=str(model.parent / "extensions"), device="cpu")
        ase.md.velocitydistribution.MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE)
        self.dynamics = VelocityVerlet(atoms, timestep=TIME_STEP * units.fs)
        # PyTorch compiles while it is used.
        self.dynamics.run(20)

    def time(self, steps):
        """Milliseconds of a step."""
        self.dynamics.run(WARM_UP)
        start = time.perf_counter()
        self.dynamics.run(steps)
        return (time.perf_counter() - start) * 1e3 / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kilnbox", type=pathlib.Path, required=True, help="the program; `cargo xtask bench` gives it")
    parser.add_argument("--forces", type=pathlib.Path, required=True, help="the program `bench-forces`, likewise")
    parser.add_argument("--client", type=pathlib.Path, required=True, help="the client, likewise")
    parser.add_argument("--architecture", nargs="+", choices=OPTIONS["ethanol"], default=list(OPTIONS["ethanol"]), metavar="NAME")
    parser.add_argument("--molecules", nargs="+", type=int, default=[1, 111])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for architecture in arguments.architecture:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            ours = train(folder / "kilnbox", [arguments.kilnbox.absolute()], architecture, "kiln")
            theirs = train(folder / "metatrain", [sys.executable, "-u", "-W", "ignore", "-c", DRIVER], architecture, "pt")
            for molecules in arguments.molecules:
                structure = folder / "structure.xyz"
                structure.write_text(subprocess.check_output([arguments.forces, "structure", str(molecules)], text=True))
                ase = InAse(theirs, structure)
                steps = max(3, int(ROUND / ase.time(3)))
                routes = {"in process": [], "wasi-nn": [], "metatrain in ASE": []}
                for _ in range(arguments.rounds):
                    routes["metatrain in ASE"].append(ase.time(steps))
                    command = [arguments.forces, "time", ours, arguments.client, str(molecules), str(steps), "1"]
                    for route, milliseconds in json.loads(subprocess.check_output(command, text=True)).items():
                        routes[route].append(milliseconds)
                medians = {route: statistics.median(times) for route, times in routes.items()}
                each = ", ".join(f"{route} {milliseconds:.3f} ms" for route, milliseconds in medians.items())
                print(f"{architecture}, {9 * molecules} atoms, {steps} steps: {each}")
                for route in ["in process", "wasi-nn"]:
                    ratio = medians[route] / medians["metatrain in ASE"]
                    print(f"ratio {architecture} forces of {9 * molecules} atoms, {route} over metatrain in ASE = {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()

"""The Python that has the peers: metatrain, and PyTorch with it."""

import os
import pathlib
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
METATRAIN = "metatrain[soap-bpnn]==2026.4.1"


def metatrain_python():
    """The Python of a virtual environment with metatrain, in `target/metatrain`."""
    folder = REPOSITORY / "target" / "metatrain"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {METATRAIN} in {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", METATRAIN], check=True)
        (folder / "complete").touch()
    return python


def become(*packages):
    """Goes on as the Python of that environment, with more packages in it, if this one is another. Called before they are imported."""
    python = metatrain_python()
    if pathlib.Path(sys.prefix) == python.parents[1]:
        return
    if packages:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    os.execv(python, [str(python), "-B", *sys.argv])

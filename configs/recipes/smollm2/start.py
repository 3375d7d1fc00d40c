"""Writes the model that the sparse one starts from: `python3 configs/recipes/smollm2/start.py DENSE START LAYER...`.

DENSE is a dense model that `causeway convert --float32` has written. START becomes a model of as many layers as are named:
those layers of DENSE in that order, its embedding and its last norm. It is dense and says little; a training with
`start_from = START` makes it sparse and teaches it what the layers left out did. Weights are copied byte by byte, layer
after layer, so that nothing but Python is needed.
"""

import json
import re
import shutil
import struct
import sys
from pathlib import Path

LAYER = re.compile(r"(transformer\.h\.)(\d+)(\..*)")


def taken(names, layers):
    """The name in START of each tensor of DENSE that is taken, by its name in DENSE."""
    place = {str(layer): index for index, layer in enumerate(layers)}
    for name in names:
        match = LAYER.fullmatch(name)
        if match is None:
            yield name, name
        elif match[2] in place:
            yield name, f"{match[1]}{place[match[2]]}{match[3]}"


def main():
    dense, start = Path(sys.argv[1]), Path(sys.argv[2])
    layers = [int(layer) for layer in sys.argv[3:]]
    config = json.loads((dense / "config.json").read_text())
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer < config["n_layers"] for layer in layers):
        sys.exit(f"name layers of {dense}, each once: 0 to {config['n_layers'] - 1}")
    start.mkdir(parents=True, exist_ok=True)
    with open(dense / "model.safetensors", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        new, pieces, end = {}, [], 0
        for name, own in sorted(taken(header, layers), key=lambda pair: pair[1]):
            first, last = header[name]["data_offsets"]
            new[own] = {**header[name], "data_offsets": [end, end + last - first]}
            pieces.append((8 + length + first, last - first))
            end += last - first
        text = json.dumps(new).encode()
        text += b" " * (-len(text) % 8)
        with open(start / "model.safetensors.part", "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for offset, size in pieces:
                file.seek(offset)
                out.write(file.read(size))
    (start / "model.safetensors.part").rename(start / "model.safetensors")
    shutil.copy(dense / "tokenizer.json", start / "tokenizer.json")
    # The configuration last: where it is, everything is.
    (start / "config.json").write_text(json.dumps({**config, "n_layers": len(layers)}, indent=2) + "\n")
    print(f"{start}: layers {', '.join(map(str, layers))} of {dense}, {end / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

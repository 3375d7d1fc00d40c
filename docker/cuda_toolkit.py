"""Puts together what `cargo build --features cuda` needs, without a CUDA installation, a GPU or a driver.

    python3 docker/cuda_toolkit.py DIRECTORY

NVIDIA's compiler and headers come from its Python wheels, all of one version. The libraries that the program is linked with
are either large or a driver's: in their place stand libraries of the same names in DIRECTORY/stubs whose functions do nothing
but fail, made from the declarations in the crate `cudarc`. A program that finds no others at run time finds no device.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

WHEELS = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
]
# Modules of cudarc with the libraries that they declare, and the number in a library's name.
LIBRARIES = {
    "driver": ("cuda", 1),
    "cublas": ("cublas", 13),
    "cublaslt": ("cublasLt", 13),
    "curand": ("curand", 10),
    "nvrtc": ("nvrtc", 13),
}
# What cuInit returns where there is no device, and any other function whose library is not there.
NO_DEVICE, STUB_LIBRARY = 100, 34


def cudarc_sources():
    """Where cargo has put the crate that Cargo.lock names."""
    root = Path(__file__).resolve().parent.parent
    told = subprocess.check_output(
        ["cargo", "metadata", "--format-version=1", "--locked", "--features=cuda"], cwd=root, stderr=subprocess.DEVNULL
    )
    packages = json.loads(told)["packages"]
    return next(Path(package["manifest_path"]).parent for package in packages if package["name"] == "cudarc") / "src"


def link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def make_stubs(directory, runtime):
    directory.mkdir(parents=True, exist_ok=True)
    sources = cudarc_sources()
    for module, (library, version) in LIBRARIES.items():
        declarations = (sources / module / "sys/mod.rs").read_text()
        names = sorted(set(re.findall(r"\bfn ((?:cu|nvrtc)[A-Za-z]\w*)\(", declarations)))
        functions = "".join(f"int {name}(void){{return {NO_DEVICE if name == 'cuInit' else STUB_LIBRARY};}}\n" for name in names)
        name = f"lib{library}.so.{version}"
        command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", "-xc", "-", f"-Wl,-soname,{name}", "-o", directory / name]
        subprocess.run(command, input=functions, text=True, check=True)
        link(directory / f"lib{library}.so", name)
        print(f"{name}: {len(names)} functions")
    # The runtime is small, and fails by itself where there is no driver.
    link(directory / "libcudart.so.13", runtime)
    link(directory / "libcudart.so", "libcudart.so.13")


def main():
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "bin/nvcc").exists():
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", scratch]
            subprocess.run([*command, *WHEELS], check=True)
            for part in (Path(scratch) / "nvidia/cu13").iterdir():
                part.rename(directory / part.name)
    link(directory / "lib64", "lib")
    make_stubs(directory / "stubs", directory / "lib/libcudart.so.13")
    # Build scripts look for libraries here.
    link(directory / "lib/stubs", "../stubs")
    link(directory / "lib/libcudart.so", "libcudart.so.13")


main()

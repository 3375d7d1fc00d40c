"""Compiles every CUDA kernel with NVRTC, without a GPU, for the architectures that are asked for.

    python3 docker/check_kernels.py [--library PATH] [sm_80 sm_90 ...]

NVRTC is part of the CUDA toolkit and of the wheel `nvidia-cuda-nvrtc`; the library is looked for in the Python
environment's site-packages and where the system's loader looks. The sources are put together as `src/numerics/kernels/mod.rs`
does it: headers first, without the lines that include them. Its compiler options are read from there.
"""

import argparse
import ctypes
import re
import site
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "src/numerics/kernels"


def find_library():
    for packages in [*site.getsitepackages(), site.getusersitepackages()]:
        found = sorted(Path(packages).glob("nvidia/**/lib/libnvrtc.so.*"))
        if found:
            return str(found[-1])
    return "libnvrtc.so"


def whole_text(path, seen):
    """The file with what it includes in front, each once."""
    text = ""
    for line in path.read_text().splitlines(keepends=True):
        included = re.match(r'#include "(.*)"', line)
        if included and included[1] not in seen:
            seen.add(included[1])
            text += whole_text(path.parent / included[1], seen)
        elif not included:
            text += line
    return text


def compile_source(nvrtc, name, text, options):
    """The PTX, and how many bytes of machine code it is; raises with the compiler's log."""
    program = ctypes.c_void_p()
    check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None))
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    check(nvrtc, nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    check(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
    messages = log.value.decode().strip()
    # A warning is a fault as well: at first use there is nobody who reads it.
    if status != 0 or messages:
        raise RuntimeError(messages)
    check(nvrtc, nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)))
    ptx = ctypes.create_string_buffer(size.value)
    check(nvrtc, nvrtc.nvrtcGetPTX(program, ptx))
    check(nvrtc, nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value.decode(), size.value


def check(nvrtc, status):
    if status != 0:
        raise RuntimeError(nvrtc.nvrtcGetErrorString(status).decode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default=None, help="libnvrtc.so")
    parser.add_argument("architectures", nargs="*", default=["sm_80", "sm_90"])
    arguments = parser.parse_args()
    library = arguments.library or find_library()
    # NVRTC opens its built-in functions by name alone, which finds what is loaded already.
    for builtins in sorted(Path(library).parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(library)
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    check(nvrtc, nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    module = (KERNELS / "mod.rs").read_text()
    options = re.findall(r'"(--[^"]*)"', re.search(r"COMPILER_OPTIONS.*?;\n", module, re.S)[0])
    print(f"NVRTC {major.value}.{minor.value}, {' '.join(options)}")
    failed = 0
    for path in sorted(KERNELS.glob("*.cu")):
        text = whole_text(path, set())
        kernels = re.findall(r"^KERNEL (\w+)\(", text, re.M)
        for architecture in arguments.architectures:
            try:
                ptx, machine_code = compile_source(nvrtc, path.name, text, [f"--gpu-architecture={architecture}", *options])
            except RuntimeError as error:
                failed += 1
                print(f"{path.name} for {architecture}:\n{error}")
                continue
            missing = [name for name in kernels if f".entry {name}(" not in ptx]
            failed += bool(missing)
            told = f"lacks {missing}" if missing else f"{len(kernels)} kernels, {machine_code} bytes of machine code"
            print(f"{path.name} for {architecture}: {told}")
    sys.exit(bool(failed))


main()

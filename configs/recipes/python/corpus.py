"""Gathers real Python, split by package: `python3 configs/recipes/python/corpus.py [DIRECTORY]`.

Below DIRECTORY (`runs/corpora/python-by-package`) it makes `train/PACKAGE/...` of the packages of `train.txt` and the
standard library of the Python that runs it, and `unseen/PACKAGE/...` of those of `unseen.txt`. Packages are downloaded as
wheels by pip. A package is taken only if its metadata name a permissive licence. Left out are tests, vendored packages,
locales and migrations, files above 200 kB or below 200 bytes, files with a line above 1,000 characters, and every file
whose text, white space aside, was taken before; unseen packages are taken first, so that nothing of them is trained on.
Of each package at most 6 MB are taken, files in the order of a hash of their paths. `sources.tsv` lists what was taken.
"""

import hashlib
import re
import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
LEFT_OUT = re.compile(
    r"(^|/)(tests?|testing|locales?|migrations|_?vendor|site-packages|idlelib|lib2to3|idle_test|__pycache__)(/|$)"
    r"|(^|/)(test_[^/]*|[^/]*_test|conftest|setup)\.py$"
)
COPYLEFT = re.compile(r"\b(a|l)?gpl|gnu ", re.IGNORECASE)
PERMISSIVE = re.compile(
    r"mit|bsd|apache|psf|python software|isc|mozilla|mpl|unlicense|public domain|zpl|zope|hpnd|zlib", re.IGNORECASE
)
MOST_BYTES = 6_000_000


def licence(metadata):
    """What the head of a wheel's METADATA says of its licence; none that is not permissive."""
    head = metadata.split("\n\n")[0]
    fields = ("license:", "license-expression:", "classifier: license")
    said = " ".join(line for line in head.split("\n") if line.lower().startswith(fields))
    return said if PERMISSIVE.search(said) and not COPYLEFT.search(said) else None


def files_of_wheel(path):
    with zipfile.ZipFile(path) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        said = licence(wheel.read(metadata).decode("utf8", "replace"))
        names = [name for name in wheel.namelist() if name.endswith(".py")]
        return said, [(name, wheel.read(name)) for name in names if not LEFT_OUT.search(name)]


def files_of_standard_library():
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if not LEFT_OUT.search(name):
            found.append((name, path.read_bytes()))
    return found


def download(wheels, packages):
    """Brings the packages' wheels that are not there yet, several at a time."""
    wheels.mkdir(parents=True, exist_ok=True)
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    here = {plain(wheel.name.split("-")[0]) for wheel in wheels.glob("*.whl")}
    missing = [package for package in packages if plain(package) not in here]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(wheels)]
    groups = [missing[start : start + 6] for start in range(0, len(missing), 6)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda group: subprocess.run([*pip, *group], check=True), groups))


class Corpus:
    def __init__(self, directory):
        self.directory = directory
        self.taken = set()
        self.sources = []

    def add(self, part, package, said, files):
        count = size = 0
        for name, data in sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest()):
            if size > MOST_BYTES:
                break
            try:
                text = data.decode("utf8")
            except UnicodeDecodeError:
                continue
            if not 200 <= len(data) <= 200_000 or "\0" in text or max(map(len, text.split("\n"))) > 1000:
                continue
            digest = hashlib.sha256(re.sub(r"\s+", "", text).encode()).digest()
            if digest in self.taken:
                continue
            self.taken.add(digest)
            path = self.directory / part / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf8")
            count, size = count + 1, size + len(data)
        self.sources.append((part, package, str(count), str(size), said))


def main():
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/corpora/python-by-package")
    corpus = Corpus(directory)
    for part in ("unseen", "train"):
        wheels = directory / "wheels" / part
        download(wheels, [line for line in (HERE / f"{part}.txt").read_text().split("\n") if line and line[0] != "#"])
        for wheel in sorted(wheels.glob("*.whl")):
            said, files = files_of_wheel(wheel)
            package = wheel.name.split("-")[0].lower()
            if said is None:
                print(f"{package} is left out: its licence is not known to be permissive", file=sys.stderr)
            else:
                corpus.add(part, package, said, files)
    corpus.add("train", "stdlib", "PSF", files_of_standard_library())
    lines = ["\t".join(source) for source in corpus.sources]
    (directory / "sources.tsv").write_text("\n".join(["part\tpackage\tfiles\tbytes\tlicence", *lines]) + "\n")
    for part in ("train", "unseen"):
        own = [source for source in corpus.sources if source[0] == part]
        megabytes = sum(int(source[3]) for source in own) / 1e6
        print(f"{part}: {len(own)} packages, {sum(int(s[2]) for s in own)} files, {megabytes:.0f} MB")


if __name__ == "__main__":
    main()

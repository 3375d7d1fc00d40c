"""Adds documentation to a corpus of real Python: `python3 configs/recipes/smollm2/text.py DIRECTORY`.

DIRECTORY is one that `configs/recipes/python/corpus.py` has made. Below its `train` this writes, for each package whose wheel
lies in `wheels/train` and whose licence corpus.py takes, `text/PACKAGE/...`: the description in the package's metadata, and
the `.md`, `.rst` and `.txt` files that it carries; and, as `text/python/TOPIC.txt`, the language reference that comes with the
Python that runs this. Left out are licences, lists of requirements and files below 500 bytes or above 200 kB, and every text
that was taken before. Nothing is downloaded.
"""

import hashlib
import re
import sys
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
from corpus import LEFT_OUT, licence  # noqa: E402

TEXT = re.compile(r"\.(md|rst|txt)$", re.IGNORECASE)
NO_PROSE = re.compile(r"\.dist-info/|licen[cs]e|copying|notice|authors|requirements|sources|constraints", re.IGNORECASE)


class Texts:
    def __init__(self, directory):
        self.directory = directory
        self.taken = set()
        self.bytes = 0

    def add(self, package, name, text):
        size = len(text.encode())
        digest = hashlib.sha256(re.sub(r"\s+", "", text).encode()).digest()
        if not 500 <= size <= 200_000 or "\0" in text or digest in self.taken:
            return
        self.taken.add(digest)
        path = self.directory / package / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
        self.bytes += size


def of_wheel(path):
    """The name and the text of each of a wheel's documents; none where its licence is not known to be permissive."""
    with zipfile.ZipFile(path) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        head, _, description = wheel.read(metadata).decode("utf8", "replace").partition("\n\n")
        if licence(head) is None:
            return
        yield "description", description
        for name in sorted(wheel.namelist()):
            if TEXT.search(name) and not LEFT_OUT.search(name) and not NO_PROSE.search(name):
                yield name, wheel.read(name).decode("utf8", "replace")


def main():
    directory = Path(sys.argv[1])
    texts = Texts(directory / "train" / "text")
    for path in sorted((directory / "wheels" / "train").glob("*.whl")):
        for name, text in of_wheel(path):
            texts.add(path.name.split("-")[0].lower(), name, text)
    for name, text in topics.items():
        texts.add("python", re.sub(r"\W+", "_", name), text)
    print(f"text: {len(texts.taken)} documents, {texts.bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

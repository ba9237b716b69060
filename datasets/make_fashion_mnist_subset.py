#!/usr/bin/env python3
"""Cuts the committed part of Fashion-MNIST out of the full data set.

    make_fashion_mnist_subset.py SOURCE DEST

SOURCE holds the four official IDX files, gzipped (names ending in .gz) or not. Their contents are
checked by SHA-256 before anything is written. DEST receives

- the first 500 training images of each class, in the order of the official file, and their labels;
- the whole official test set;
- SHA256SUMS, for `sha256sum -c`.

Same input, same output: no random numbers, no time stamps. The compressed bytes can differ between
versions of zlib, the data inside them cannot. Only the standard library is needed.
"""

import argparse
import gzip
import hashlib
import io
import os
import struct
import sys
import tempfile
from pathlib import Path

PER_CLASS = 500
CLASSES = 10
SIDE = 28
# Small files keep a clone quick, and some hosts refuse larger ones.
MAX_FILE_BYTES = 5_000_000

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"

# SHA-256 of the official files after decompression: gzip headers vary between mirrors.
OFFICIAL_SHA256 = {
    TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class CutError(Exception):
    """What went wrong, in words for the person who ran the script."""


def read_official(source: Path, name: str) -> tuple[bytes, bytes | None]:
    """The checked content of one official file, and its compressed form if it came in one."""
    packed_path, plain_path = source / f"{name}.gz", source / name
    if packed_path.is_file():
        packed = packed_path.read_bytes()
        try:
            content = gzip.decompress(packed)
        except (OSError, EOFError) as error:
            raise CutError(f"{packed_path}: not a whole gzip file: {error}") from error
    elif plain_path.is_file():
        packed, content = None, plain_path.read_bytes()
    else:
        raise CutError(f"{source}: neither {name}.gz nor {name} is there")
    got, wanted = hashlib.sha256(content).hexdigest(), OFFICIAL_SHA256[name]
    if got != wanted:
        raise CutError(
            f"{source}: the content of {name} has SHA-256 {got}, "
            f"but the official file has {wanted}"
        )
    return content, packed


def body_of(name: str, content: bytes, sizes: tuple[int, ...]) -> bytes:
    """The data behind the header of an IDX file of unsigned bytes, whose header must say `sizes`."""
    header = idx_header(sizes)
    if content[: len(header)] != header:
        got = content[: len(header)].hex(" ", 4)
        raise CutError(f"{name}: wanted the header {header.hex(' ', 4)}, got {got}")
    return content[len(header) :]


def idx_header(sizes: tuple[int, ...]) -> bytes:
    """Two zero bytes, type 8 (unsigned byte), number of dimensions, sizes as big-endian words."""
    return struct.pack(f">HBB{len(sizes)}I", 0, 8, len(sizes), *sizes)


def first_of_each_class(labels: bytes, per_class: int) -> list[int]:
    """Positions of the first `per_class` labels of each class, in ascending order."""
    seen = [0] * CLASSES
    chosen = []
    for position, label in enumerate(labels):
        if seen[label] < per_class:
            seen[label] += 1
            chosen.append(position)
    for label, count in enumerate(seen):
        if count != per_class:
            raise CutError(f"class {label}: wanted {per_class} training images, found {count}")
    return chosen


def pack(content: bytes) -> bytes:
    """gzip at the highest level, without name and with time stamp 0."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as stream:
        stream.write(content)
    return buffer.getvalue()


def cut(source: Path) -> dict[str, bytes]:
    """The files of the subset: name to compressed bytes."""
    official = {name: read_official(source, name) for name in OFFICIAL_SHA256}
    images = body_of(TRAIN_IMAGES, official[TRAIN_IMAGES][0], (60_000, SIDE, SIDE))
    labels = body_of(TRAIN_LABELS, official[TRAIN_LABELS][0], (60_000,))
    chosen = first_of_each_class(labels, PER_CLASS)
    area = SIDE * SIDE
    few_images = b"".join(images[i * area : (i + 1) * area] for i in chosen)
    few_labels = bytes(labels[i] for i in chosen)
    files = {
        f"{TRAIN_IMAGES}.gz": pack(idx_header((len(chosen), SIDE, SIDE)) + few_images),
        f"{TRAIN_LABELS}.gz": pack(idx_header((len(chosen),)) + few_labels),
    }
    for name in (TEST_IMAGES, TEST_LABELS):
        content, packed = official[name]
        repacked = pack(content)
        keep_theirs = packed is not None and len(packed) < len(repacked)
        files[f"{name}.gz"] = packed if keep_theirs else repacked
    return files


def write_aside(path: Path, content: bytes) -> None:
    """Writes a temporary file beside `path` and renames it, so that no half file is ever seen."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the full data set")
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to write the subset to")
    args = parser.parse_args()
    try:
        if args.dest.exists() and args.source.resolve() == args.dest.resolve():
            raise CutError("SOURCE and DEST are the same folder; the full set would be overwritten")
        files = cut(args.source)
        for name, content in files.items():
            if len(content) >= MAX_FILE_BYTES:
                raise CutError(
                    f"{name}: {len(content)} bytes, wanted fewer than {MAX_FILE_BYTES}"
                )
        sums = "".join(
            f"{hashlib.sha256(content).hexdigest()}  {name}\n"
            for name, content in sorted(files.items())
        )
        args.dest.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_aside(args.dest / name, content)
        write_aside(args.dest / "SHA256SUMS", sums.encode())
    except (CutError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, content in sorted(files.items()):
        print(f"{len(content):>9}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

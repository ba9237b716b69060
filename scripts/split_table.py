"""Parts a CSV table: every Nth row goes into NAME-test.csv, the others into NAME-train.csv, beside the table.

Deterministic, and of a table that is sorted by its label it takes the same share of each.

    python scripts/split_table.py data/trec/trec.csv --every 5
"""

import argparse
import csv
import pathlib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=pathlib.Path)
    parser.add_argument("--every", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    table = arguments.table
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    last = arguments.every - 1
    parts = {
        "train": [row for i, row in enumerate(rows) if i % arguments.every != last],
        "test": rows[last :: arguments.every],
    }
    for part, rows in parts.items():
        path = table.with_name(f"{table.stem}-{part}.csv")
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()

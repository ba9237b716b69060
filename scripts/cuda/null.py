#!/usr/bin/env python3
"""CUDA's shared libraries without a card: they count what they are asked for and compute nothing.

    null.py DEST CUDARC_SRC [CUDARC_SRC ...]

With DEST in LD_LIBRARY_PATH a program that was built with `cuda` or `cudnn` runs on any machine, on zeros: it shows how
long the host takes, what it asks a card for (NULL_CUDA_LOG, see null_driver.cpp), and whether an address is used
after its memory was freed. scripts/host_cost.py makes a table of it. What is computed means nothing.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

import shims

HERE = pathlib.Path(__file__).parent
FUNCTION = re.compile(r"^(?:int|size_t) (\w+)\(", re.MULTILINE)

HEAD = "#include <stddef.h>\n#include <stdlib.h>\n#include <string.h>\n"
MAKE = "int {}(void **made) {{ return *made = malloc(16), 0; }}\n"

# What cuDNN answers to a search for an algorithm: cudnnConvolution*AlgoPerf_t, once.
FOUND = "struct Found { int algorithm, status; float time; size_t memory; int deterministic, math, reserved[3]; };"
SEARCH = """
int NAME(void *h, void *a, void *b, void *c, void *d, int asked, int *count, struct Found *found) {
    memset(found, 0, sizeof *found);
    found->algorithm = found->deterministic = 1;
    return *count = 1, 0;
}
"""

CUDNN = ["cudnnCreate", *(f"cudnnCreate{x}Descriptor" for x in ("Tensor", "Filter", "Convolution"))]
SEARCHES = [f"cudnnGetConvolution{x}Algorithm_v7" for x in ("Forward", "BackwardData", "BackwardFilter")]
# Functions that have to answer something; all others have only to succeed.
ANSWERS = {
    "curand": MAKE.format("curandCreateGenerator"),
    "cublas": MAKE.format("cublasCreate_v2"),
    "cudnn": "".join(map(MAKE.format, CUDNN))
    + FOUND
    + "".join(SEARCH.replace("NAME", name) for name in SEARCHES)
    + "size_t cudnnGetVersion(void) { return 91000; }\n",
}


def main(dest, *sources):
    dest = pathlib.Path(dest)
    dest.mkdir(parents=True, exist_ok=True)
    for module, (_, soname, _) in shims.LIBRARIES.items():
        of_driver = module == "driver"
        answers = (HERE / "null_driver.cpp").read_text() if of_driver else ANSWERS.get(module, "")
        rest = sorted(set(shims.declared(sources, module)) - set(FUNCTION.findall(answers)))
        succeed = "".join(f"long {name}(void) {{ return 0; }}\n" for name in rest)
        with tempfile.TemporaryDirectory() as work:
            parts = []
            for name, text in (("answers.cpp" if of_driver else "answers.c", answers), ("rest.c", succeed)):
                source, built = pathlib.Path(work, name), pathlib.Path(work, f"{name}.o")
                source.write_text(text if of_driver else HEAD + text)
                compiler = ["c++", "-std=c++17"] if name.endswith("cpp") else ["cc"]
                subprocess.run([*compiler, "-c", "-fPIC", "-O2", "-fno-builtin", "-w", "-o", built, source], check=True)
                parts.append(built)
            linker = "c++" if of_driver else "cc"
            subprocess.run([linker, "-shared", "-o", dest / soname, *parts], check=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

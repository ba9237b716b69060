#!/usr/bin/env python3
"""Static libraries that stand in for CUDA's shared ones while a program is linked.

    shims.py DEST CUDARC_SRC [CUDARC_SRC ...]

candle links the driver, cuBLAS and their like by name, so a program of its own would neither link on a
machine without them nor start on one. For each library this makes a static one with every function that
cudarc declares. The first call of a function opens the shared library and jumps into it; from then on
the function is one jump. A library that is not there makes its functions return an error code:

    CUDA_ERROR_STUB_LIBRARY (34) for the driver, "not initialised" for the others.

Linux x86-64, System V calling convention.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

# module of cudarc: name for the linker, shared library, result of its functions where it is not there
LIBRARIES = {
    "driver": ("cuda", "libcuda.so.1", 34),
    "nvrtc": ("nvrtc", "libnvrtc.so.13", 11),
    "curand": ("curand", "libcurand.so.10", 101),
    "cublas": ("cublas", "libcublas.so.13", 1),
    "cublaslt": ("cublasLt", "libcublasLt.so.13", 1),
    "cudnn": ("cudnn", "libcudnn.so.9", 1001),
    "nccl": ("nccl", "libnccl.so.2", 3),
}

# Functions are declared one a line within `extern "C"` blocks, which are indented.
DECLARATION = re.compile(r"^ {12}(?:pub )?fn (\w+)\(", re.MULTILINE)

# These return a string and not a code.
TEXT = re.compile(r"^(?!cuGet).*(GetErrorString|GetStatusString|GetStatusName|GetLastError)$")

HEAD = r"""
#include <dlfcn.h>
#include <stddef.h>

static long absent(void) { return RESULT; }
static const char *absent_text(void) { return SONAME " was not found"; }

/* Weakly-consistent races are harmless: every thread finds the same address. */
__attribute__((used)) void *PREFIX_find(long i) {
    static void *library;
    if (!library) library = dlopen(SONAME, RTLD_NOW | RTLD_GLOBAL);
    void *found = library ? dlsym(library, PREFIX_names[i]) : NULL;
    if (!found) found = PREFIX_text[i] ? (void *)absent_text : (void *)absent;
    PREFIX_slots[i] = found;
    return found;
}

/* On the stack: return address, number of the function. The arguments are kept around the search. */
__asm__(
    ".text\n.type PREFIX_enter,@function\nPREFIX_enter:\n"
    "push %rax\npush %rdi\npush %rsi\npush %rdx\npush %rcx\npush %r8\npush %r9\n"
    "sub $136, %rsp\n"
    "movups %xmm0, (%rsp)\nmovups %xmm1, 16(%rsp)\nmovups %xmm2, 32(%rsp)\nmovups %xmm3, 48(%rsp)\n"
    "movups %xmm4, 64(%rsp)\nmovups %xmm5, 80(%rsp)\nmovups %xmm6, 96(%rsp)\nmovups %xmm7, 112(%rsp)\n"
    "mov 192(%rsp), %rdi\ncall PREFIX_find\nmov %rax, %r11\n"
    "movups (%rsp), %xmm0\nmovups 16(%rsp), %xmm1\nmovups 32(%rsp), %xmm2\nmovups 48(%rsp), %xmm3\n"
    "movups 64(%rsp), %xmm4\nmovups 80(%rsp), %xmm5\nmovups 96(%rsp), %xmm6\nmovups 112(%rsp), %xmm7\n"
    "add $136, %rsp\n"
    "pop %r9\npop %r8\npop %rcx\npop %rdx\npop %rsi\npop %rdi\npop %rax\n"
    "add $8, %rsp\njmp *%r11\n.size PREFIX_enter,.-PREFIX_enter\n");
"""


def declared(sources, module):
    """The functions that any of the cudarc versions declares, sorted."""
    names = set()
    for source in sources:
        file = pathlib.Path(source, module, "sys", "mod.rs")
        if file.exists():
            names.update(DECLARATION.findall(file.read_text()))
    return sorted(names)


def shim(names, prefix, soname, result):
    """C source of one library."""
    lines = [f"#define RESULT {result}", f'#define SONAME "{soname}"']
    lines += [f"static const char *const {prefix}_names[] = {{", *(f'    "{n}",' for n in names), "};"]
    texts = ", ".join(str(int(bool(TEXT.match(n)))) for n in names)
    lines.append(f"static const char {prefix}_text[] = {{ {texts} }};")
    lines += [f"extern void {prefix}_first_{i}(void);" for i in range(len(names))]
    first = (f"    (void *){prefix}_first_{i}," for i in range(len(names)))
    lines += [f"__attribute__((used)) void *{prefix}_slots[] = {{", *first, "};"]
    lines.append(HEAD.replace("PREFIX", prefix))
    for i, name in enumerate(names):
        lines.append(
            f'__asm__(".text\\n.globl {name}\\n.type {name},@function\\n{name}:\\n'
            f'jmp *{prefix}_slots+{8 * i}(%rip)\\n.size {name},.-{name}\\n'
            f'.globl {prefix}_first_{i}\\n{prefix}_first_{i}:\\npush ${i}\\njmp {prefix}_enter\\n");'
        )
    return "\n".join(lines) + "\n"


def main(dest, *sources):
    dest = pathlib.Path(dest)
    dest.mkdir(parents=True, exist_ok=True)
    for module, (library, soname, result) in LIBRARIES.items():
        names = declared(sources, module)
        if not names:
            sys.exit(f"{module}: no function found in {', '.join(sources)}")
        with tempfile.TemporaryDirectory() as work:
            source, built = pathlib.Path(work, "shim.c"), pathlib.Path(work, "shim.o")
            source.write_text(shim(names, f"sala_{library}", soname, result))
            subprocess.run(["cc", "-c", "-fPIC", "-O1", "-o", built, source], check=True)
            archive = dest / f"lib{library}.a"
            archive.unlink(missing_ok=True)
            subprocess.run(["ar", "crs", archive, built], check=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

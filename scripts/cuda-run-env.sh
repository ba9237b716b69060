#!/usr/bin/env bash
# On the machine with the graphics card: prints the `export` line with which a program of this project finds the
# libraries of CUDA 13 that it opens when it needs them.
#
#   eval "$(scripts/cuda-run-env.sh)" && sala-bench doctor
#
# Looks where the dynamic linker looks anyway, then beside the nvidia-* packages of a Python (PYTHON, or
# python3), as PyTorch and `pip install nvidia-cublas nvidia-curand nvidia-cuda-nvrtc nvidia-cudnn-cu13` bring
# them, and then in the usual folders. Says on standard error what was found where and what is missing.
set -euo pipefail

folders=()
while IFS= read -r folder; do folders+=("$folder"); done < <(
    "${PYTHON:-python3}" - <<'PYTHON' 2>/dev/null || true
import glob, importlib.util, os
spec = importlib.util.find_spec("nvidia")
for place in spec.submodule_search_locations if spec else ():
    for folder in sorted(glob.glob(os.path.join(place, "*", "lib"))):
        print(folder)
PYTHON
)
folders+=(/usr/local/cuda/lib64 /usr/local/cuda-13/lib64 /usr/local/nvidia/lib64 /usr/local/nvidia/lib)
folders+=(/usr/lib/wsl/lib)

known=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null || true)
set_folders=${LD_LIBRARY_PATH:-}
wanted=()
missing=0
while read -r library what; do
    place=
    IFS=: read -ra already <<<"$set_folders"
    for folder in ${already[@]+"${already[@]}"}; do
        [ -n "$folder" ] && [ -e "$folder/$library" ] && place="LD_LIBRARY_PATH"
    done
    if [ -z "$place" ] && grep -qF "$library " <<<"$known"; then
        place="the system"
    fi
    if [ -z "$place" ]; then
        for folder in "${folders[@]}"; do
            if [ -e "$folder/$library" ]; then
                place=$folder
                case ":${wanted[*]-}:" in *":$folder:"*) ;; *) wanted+=("$folder:") ;; esac
                break
            fi
        done
    fi
    [ -n "$place" ] || missing=1
    printf '%-18s %-28s %s\n' "$library" "($what)" "${place:-not found}" >&2
done <<'LIBRARIES'
libcuda.so.1 the driver
libcublas.so.13 matrix products
libcublasLt.so.13 matrix products
libcurand.so.10 random numbers
libnvrtc.so.13 compiler at run time
libcudnn.so.9 with feature cudnn
LIBRARIES

path=$(IFS=; echo "${wanted[*]-}")
path=${path%:}
[ -z "$path" ] || echo "export LD_LIBRARY_PATH='$path'\"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
[ "$missing" = 0 ] || echo "something is missing: see above" >&2

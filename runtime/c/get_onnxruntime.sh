#!/bin/sh
# Makes a folder with ONNX Runtime's C header and library, for -DEDGESEG_ONNXRUNTIME=FOLDER.
#
#     get_onnxruntime.sh FOLDER LIBRARY
#
# LIBRARY: a libonnxruntime.so.*, such as that of the Python wheel. The header is in no wheel; it
# comes from Debian 13's libonnxruntime-dev, from the mirror that this machine's apt uses (Debian 12
# and 13; keys of Debian 13 are in debian-archive-keyring of both). Nothing is installed.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 FOLDER LIBRARY" >&2; exit 2; }
[ -f "$2" ] || { echo "$0: no library $2; pip install onnxruntime brings one" >&2; exit 2; }
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f $keys ] || { echo "$0: no $keys; apt-get install debian-archive-keyring" >&2; exit 2; }
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list \
    2>/dev/null | sed -n -E 's#^(URIs:|deb( \[[^]]*\])?) +([^ ]*/debian/?)( .*)?$#\3#p' | head -n 1)
[ -n "$mirror" ] || { echo "$0: no Debian mirror in /etc/apt" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=$keys] $mirror trixie main" > "$work/sources.list"
apt() {
    apt-get -qq -o Acquire::http::Timeout=20 -o Acquire::Retries=1 -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}
apt update
(cd "$work" && apt download libonnxruntime-dev)
dpkg -x "$work"/libonnxruntime-dev_*.deb "$work/tree"
mkdir -p "$1/include" "$1/lib"
cp "$work/tree/usr/include/onnxruntime/onnxruntime_c_api.h" "$1/include/"
cp "$2" "$1/lib/libonnxruntime.so.1"
ln -sf libonnxruntime.so.1 "$1/lib/libonnxruntime.so"

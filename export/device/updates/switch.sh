# The part that all recipes share: put a bundle in place, test it, go back where it fails.
#
#   $EDGESEG_ROOT/releases/ID/bundle    a bundle; ID is the SHA-256 of its SHA256SUMS
#   $EDGESEG_ROOT/current               link to the release in use: open current/bundle
#   $EDGESEG_ROOT/previous              link to the one before
#   $EDGESEG_ROOT/pending               there while a switch was neither proved nor taken back
#
# A power cut in between leaves `pending`; the recover verb, run at boot, takes the switch back.

if [ -r "${EDGESEG_CONF:-/etc/edgeseg/update.conf}" ]; then
    . "${EDGESEG_CONF:-/etc/edgeseg/update.conf}"
fi
EDGESEG_ROOT="${EDGESEG_ROOT:-/data/edgeseg}"
EDGESEG_SELFTEST="${EDGESEG_SELFTEST:-@SELFTEST@}"  # gets the bundle as last argument
EDGESEG_RESTART="${EDGESEG_RESTART:-true}"          # what reopens current/bundle
EDGESEG_RELEASE_FILE="${EDGESEG_RELEASE_FILE:-/etc/nv_tegra_release}"

fail() {
    echo "edgeseg-update: $1" >&2
    return 1
}

# Says whether this Jetson Linux is the one that the update is for. $1: such as 36.4.3
require_l4t() {
    found=$(sed -n 's/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\),.*/\1.\2/p' \
        "$EDGESEG_RELEASE_FILE" 2>/dev/null)
    [ "$found" = "$1" ] || fail "E-UPDATE-L4T: made for L4T $1, here is ${found:-none}; ship another"
}

# Copies the bundle folder $1 to its release, verified; prints the ID. $2: ID that it must have, or "".
stage() {
    id=$(sha256sum <"$1/SHA256SUMS" | cut -d ' ' -f 1)
    [ -z "$2" ] || [ "$id" = "$2" ] || fail "E-UPDATE-HASH: bundle $id, expected $2" || return 1
    release="$EDGESEG_ROOT/releases/$id"
    if [ ! -d "$release" ]; then
        rm -rf "$release.part"
        mkdir -p "$release.part" || return 1
        cp -R "$1" "$release.part/bundle" || return 1
        (cd "$release.part/bundle" && sha256sum -c SHA256SUMS >/dev/null 2>&1) ||
            fail "E-UPDATE-HASH: the bundle is damaged; ship it again" || return 1
        if [ -f "$release.part/bundle/kit.json" ]; then  # builds and replays its vectors
            precision=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["default"])' \
                "$release.part/bundle/kit.json") || return 1
            python3 -B "$release.part/bundle/build_engine.py" --precision "$precision" \
                --out "$release.part/bundle-$precision.plan" >&2 ||
                fail "E-UPDATE-BUILD: the engine could not be built" || return 1
        fi
        sync
        mv "$release.part" "$release" || return 1
    fi
    echo "$id"
}

# Points the link $1 to $2 in one step.
point() {
    ln -sfn "$2" "$EDGESEG_ROOT/$1.new" && mv -T "$EDGESEG_ROOT/$1.new" "$EDGESEG_ROOT/$1"
}

selftest() {
    $EDGESEG_SELFTEST "$EDGESEG_ROOT/current/bundle" >&2
}

# Switches to release $1, proves it, or goes back and fails.
activate() {
    before=$(readlink "$EDGESEG_ROOT/current" || true)
    echo "$before" >"$EDGESEG_ROOT/pending" || return 1
    sync
    point current "releases/$1" || return 1
    if selftest; then
        if [ -n "$before" ] && [ "$before" != "releases/$1" ]; then
            point previous "$before" || return 1
        fi
        rm -f "$EDGESEG_ROOT/pending"
        sync
        $EDGESEG_RESTART
        return 0
    fi
    recover
    fail "E-UPDATE-SELFTEST: release $1 failed its self-test; back on ${before:-none}"
}

# Takes back a switch that was not proved; does nothing where there is none.
recover() {
    [ -f "$EDGESEG_ROOT/pending" ] || return 0
    take_back "$(cat "$EDGESEG_ROOT/pending")"
}

# Points current to $1, or removes it where there was none.
take_back() {
    if [ -n "$1" ]; then
        point current "$1" || return 1
    else
        rm -f "$EDGESEG_ROOT/current"
    fi
    rm -f "$EDGESEG_ROOT/pending"
    sync
    $EDGESEG_RESTART
}

# Removes releases that neither link names.
prune() {
    for release in "$EDGESEG_ROOT"/releases/*; do
        case "releases/${release##*/}" in
        "$(readlink "$EDGESEG_ROOT/current")" | "$(readlink "$EDGESEG_ROOT/previous")") ;;
        *) rm -rf "$release" ;;
        esac
    done
}

# The part that all recipes share: put a bundle in place, test it, go back where it fails.
#
#   $EDGESEG_ROOT/releases/ID/bundle    a bundle; ID is the SHA-256 of its SHA256SUMS
#   $EDGESEG_ROOT/current               link to the release in use: open current/bundle
#   $EDGESEG_ROOT/previous              link to the one before
#   $EDGESEG_ROOT/pending               the release before, while a switch is under way; "none" for none
#
# A power cut in between leaves `pending`; the recover verb, run at boot, takes the switch back.

if [ -r "${EDGESEG_CONF:-/etc/edgeseg/update.conf}" ]; then
    . "${EDGESEG_CONF:-/etc/edgeseg/update.conf}"
fi
EDGESEG_ROOT="${EDGESEG_ROOT:-/data/edgeseg}"
EDGESEG_SELFTEST="${EDGESEG_SELFTEST:-@SELFTEST@}"  # gets the bundle as last argument
EDGESEG_SELFTEST_S="${EDGESEG_SELFTEST_S:-300}"     # after which it has failed
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

# Whether the bundle folder $1 has the ID $2 and every byte that its SHA256SUMS says.
intact() {
    [ "$(id_of "$1")" = "$2" ] && (cd "$1" && sha256sum -c SHA256SUMS >/dev/null 2>&1)
}

# Prints the ID of the bundle folder $1.
id_of() {
    [ -s "$1/SHA256SUMS" ] && sha256sum <"$1/SHA256SUMS" | cut -d ' ' -f 1
}

# Copies the bundle folder $1 to its release, verified; prints the ID. $2: ID that it must have, or "".
stage() {
    id=$(id_of "$1") || fail "E-UPDATE-HASH: the bundle has no SHA256SUMS; ship it again" || return 1
    [ -z "$2" ] || [ "$id" = "$2" ] || fail "E-UPDATE-HASH: bundle $id, expected $2" || return 1
    release="$EDGESEG_ROOT/releases/$id"
    if ! intact "$release/bundle" "$id"; then
        rm -rf "$release.part" "$release.damaged"
        mkdir -p "$release.part" || return 1
        cp -R "$1" "$release.part/bundle" || return 1
        intact "$release.part/bundle" "$id" ||
            fail "E-UPDATE-HASH: the bundle is damaged; ship it again" || return 1
        if [ -f "$release.part/bundle/kit.json" ]; then  # builds and replays its vectors
            precision=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["default"])' \
                "$release.part/bundle/kit.json") || return 1
            python3 -B "$release.part/bundle/build_engine.py" --precision "$precision" \
                --out "$release.part/bundle-$precision.plan" >&2 ||
                fail "E-UPDATE-BUILD: the engine could not be built" || return 1
        fi
        sync
        [ ! -e "$release" ] || mv -T "$release" "$release.damaged" || return 1
        mv -T "$release.part" "$release" || return 1
        rm -rf "$release.damaged"
    fi
    echo "$id"
}

# Points the link $1 to $2 in one step.
point() {
    ln -sfn "$2" "$EDGESEG_ROOT/$1.new" && mv -T "$EDGESEG_ROOT/$1.new" "$EDGESEG_ROOT/$1"
}

# Prints the release in use, such as releases/ID, or "none".
in_use() {
    readlink "$EDGESEG_ROOT/current" || echo none
}

# Writes the release in use to the file $1, whole or not at all, even where the power fails.
note_in_use() {
    in_use >"$EDGESEG_ROOT/$1.new" && sync &&
        mv -T "$EDGESEG_ROOT/$1.new" "$EDGESEG_ROOT/$1" && sync
}

# Tests the bundle folder $1.
selftest() {
    timeout -k 10 "$EDGESEG_SELFTEST_S" $EDGESEG_SELFTEST "$1" >&2
}

# Proves release $1 and switches to it, or fails with all as it was.
activate() {
    before=$(in_use)
    selftest "$EDGESEG_ROOT/releases/$1/bundle" ||
        fail "E-UPDATE-SELFTEST: release $1 failed its self-test; still on $before" || return 1
    note_in_use pending || return 1
    if ! point current "releases/$1"; then
        recover
        return 1
    fi
    if ! $EDGESEG_RESTART; then
        recover
        fail "E-UPDATE-RESTART: the application did not open release $1; back on $(in_use)"
        return 1
    fi
    if [ "$before" != none ] && [ "$before" != "releases/$1" ]; then
        point previous "$before" || return 1
    fi
    rm -f "$EDGESEG_ROOT/pending" && sync
}

# Takes back a switch that was not finished; does nothing where there is none.
recover() {
    [ ! -f "$EDGESEG_ROOT/pending" ] || take_back "$(cat "$EDGESEG_ROOT/pending")"
}

# Goes back to $1, as `note_in_use` wrote it, and reopens it where another one was in use. Nothing
# written, nothing to go back to: an empty $1 changes no link.
take_back() {
    found=$(in_use)
    case "$1" in
    "" | "$found") found="" ;;
    none) rm -f "$EDGESEG_ROOT/current" ;;
    *) [ -d "$EDGESEG_ROOT/$1/bundle" ] && point current "$1" ;;
    esac || fail "E-UPDATE-ROLLBACK: still on $found, not back on $1; link current by hand" || return 1
    rm -f "$EDGESEG_ROOT/pending" && sync || return 1
    # With no release left there is nothing that the application could open.
    [ -z "$found" ] || $EDGESEG_RESTART || [ "$1" = none ] ||
        fail "E-UPDATE-ROLLBACK: back on $1, but the application was not restarted; restart it"
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

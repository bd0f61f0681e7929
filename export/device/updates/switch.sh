# The part that all recipes share: put a bundle in place, test it, go back where it fails.
#
#   $EDGESEG_ROOT/releases/NAME/bundle  a bundle; NAME is the SHA-256 of its SHA256SUMS, with .1 and so
#                                       on behind it where the release of that name was damaged
#   $EDGESEG_ROOT/current               link to the release in use: open current/bundle
#   $EDGESEG_ROOT/previous              link to the one before
#   $EDGESEG_ROOT/pending               while a switch is under way, where the two links led before it: a
#                                       line each, "none" for none
#   $EDGESEG_ROOT/part                  a release that is being made
#   $EDGESEG_ROOT/lock                  held by whoever changes any of these
#   $EDGESEG_ROOT/restart.log           what the last restart said
#
# A release is whole when it gets its name, and nothing in it is changed afterwards. A power cut in the
# middle of a switch leaves `pending`; the recover verb, run at boot, takes the switch back.

umask 022
if [ -r "${EDGESEG_CONF:-/etc/edgeseg/update.conf}" ]; then
    . "${EDGESEG_CONF:-/etc/edgeseg/update.conf}"
fi
EDGESEG_ROOT="${EDGESEG_ROOT:-/data/edgeseg}"
EDGESEG_SELFTEST="${EDGESEG_SELFTEST:-@SELFTEST@}"  # gets the bundle as last argument
EDGESEG_SELFTEST_S="${EDGESEG_SELFTEST_S:-300}"     # after which it has failed
EDGESEG_RESTART="${EDGESEG_RESTART:-}"              # what reopens current/bundle
EDGESEG_RESTART_S="${EDGESEG_RESTART_S:-120}"       # after which it has failed
EDGESEG_RELEASE_FILE="${EDGESEG_RELEASE_FILE:-/etc/nv_tegra_release}"

fail() {
    echo "edgeseg-update: $1" >&2
    return 1
}

# What every update begins with: refuses another Jetson Linux than $1 and a device that is not set up,
# and takes back what an earlier update left half done. Where that fails, it says why; what mends it
# is a good update.
begin() {
    require_l4t "$1" || return 1
    [ -n "$EDGESEG_RESTART" ] ||
        fail "E-UPDATE-CONF: no EDGESEG_RESTART in /etc/edgeseg/update.conf; set it, or to true" ||
        return 1
    alone && { recover || true; }
}

# Says whether this Jetson Linux is the one that the update is for. $1: such as 36.4.3
require_l4t() {
    found=$(sed -n 's/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\),.*/\1.\2/p' \
        "$EDGESEG_RELEASE_FILE" 2>/dev/null)
    [ "$found" = "$1" ] || fail "E-UPDATE-L4T: made for L4T $1, here is ${found:-none}; ship another"
}

# Holds the lock until this script ends, or refuses.
alone() {
    { mkdir -p "$EDGESEG_ROOT/releases" && true >>"$EDGESEG_ROOT/lock"; } || unwritten || return 1
    exec 9>>"$EDGESEG_ROOT/lock"
    flock -n 9 || fail "E-UPDATE-BUSY: another update runs; wait for it"
}

unwritten() {
    fail "E-UPDATE-WRITE: cannot write to $EDGESEG_ROOT; free space or mend its rights"
}

# Whether the bundle folder $1 has the ID $2, every byte that its SHA256SUMS says, and no file beside:
# a self-test refuses one that has.
intact() (
    cd "$1" 2>/dev/null && [ "$(id_of .)" = "$2" ] && sha256sum -c SHA256SUMS >/dev/null 2>&1 &&
        [ "$(files_here | LC_ALL=C sort)" = "$(files_listed | LC_ALL=C sort)" ]
)

files_here() {
    find . -type f -print -o ! -type d -exec echo "not a file:" {} \;
}

# Prints what `files_here` is to find in the folder of a bundle.
files_listed() {
    sed 's|^[0-9a-f]*  |./|' SHA256SUMS
    echo ./SHA256SUMS
    [ ! -e model.sig ] || echo ./model.sig
}

# Prints the ID of the bundle folder $1.
id_of() {
    [ -s "$1/SHA256SUMS" ] && sha256sum <"$1/SHA256SUMS" | cut -d ' ' -f 1
}

# Makes a release of the bundle folder $1, unless a whole one is there; prints its name. $2: ID that
# it must have, or "". One that is there is never changed, as `current` may lead to it.
stage() {
    id=$(id_of "$1") || fail "E-UPDATE-HASH: the bundle has no SHA256SUMS; ship it again" || return 1
    [ -z "$2" ] || [ "$id" = "$2" ] || fail "E-UPDATE-HASH: bundle $id, expected $2" || return 1
    for release in "$EDGESEG_ROOT/releases/$id" "$EDGESEG_ROOT/releases/$id".*; do
        if intact "$release/bundle" "$id" && has_engine "$release"; then
            echo "${release##*/}"
            return
        fi
    done
    name=$id
    count=0
    while [ -e "$EDGESEG_ROOT/releases/$name" ]; do
        count=$((count + 1))
        name=$id.$count
    done
    make_part "$1" "$id" || return 1  # what there is of it, prune removes
    { sync && mv -T "$EDGESEG_ROOT/part" "$EDGESEG_ROOT/releases/$name"; } || unwritten || return 1
    echo "$name"
}

# Copies the bundle folder $1 of the ID $2, verified, and builds the engine of a kit beside it.
make_part() {
    part=$EDGESEG_ROOT/part
    { rm -rf "$part" && mkdir "$part" && cp -R "$1" "$part/bundle"; } || unwritten || return 1
    intact "$part/bundle" "$2" || fail "E-UPDATE-HASH: the bundle is damaged; ship it again" || return 1
    [ -f "$part/bundle/kit.json" ] || return 0
    plan=$(plan_of "$part") || return 1
    precision=${plan##*/bundle-}
    python3 -B "$part/bundle/build_engine.py" --precision "${precision%.plan}" --out "$plan" >&2 ||
        fail "E-UPDATE-BUILD: the engine could not be built"
}

# Whether the release folder $1 has the engine that it needs: that of a kit has to fit this device.
has_engine() {
    [ -f "$1/bundle/kit.json" ] || return 0
    plan=$(plan_of "$1") && python3 -B "$1/bundle/build_engine.py" --check "$plan" >&2
}

# Prints the path of the engine that belongs to the kit in the release folder $1.
plan_of() {
    precision=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["default"])' \
        "$1/bundle/kit.json") || fail "E-UPDATE-BUILD: kit.json names no precision" || return 1
    echo "$1/bundle-$precision.plan"
}

# Points the link $1 to $2 in one step.
point() {
    ln -sfn "$2" "$EDGESEG_ROOT/$1.new" && mv -T "$EDGESEG_ROOT/$1.new" "$EDGESEG_ROOT/$1"
}

# Prints the release that the link $1 leads to as releases/NAME, also where the link was made by hand
# with another path to it, or "none".
leads_to() {
    if target=$(readlink "$EDGESEG_ROOT/$1"); then
        echo "releases/$(basename "$target")"
    else
        echo none
    fi
}

# Writes where both links lead to the file $1, whole or not at all, even where the power fails.
note_links() {
    { leads_to current && leads_to previous; } >"$EDGESEG_ROOT/$1.new" && sync &&
        mv -T "$EDGESEG_ROOT/$1.new" "$EDGESEG_ROOT/$1" && sync
}

# Tests the bundle folder $1. What it starts must not hold our lock.
selftest() {
    timeout -k 10 "$EDGESEG_SELFTEST_S" $EDGESEG_SELFTEST "$1" >&2 9>&-
}

# Reopens current/bundle. What it starts may keep its output open for ever, and RAUC and Mender wait
# until ours is closed: it gets a file instead. Always a new one: what an earlier restart started may
# still write to the old.
restart() {
    log=$EDGESEG_ROOT/restart.log
    { rm -f "$log" && true >>"$log"; } 2>/dev/null || log=/dev/null
    timeout -k 10 "$EDGESEG_RESTART_S" $EDGESEG_RESTART >>"$log" 2>&1 9>&-
    result=$?
    tail -c 4096 "$log" >&2
    return $result
}

# Proves the release $1 and switches to it, or fails with all as it was.
activate() {
    before=$(leads_to current)
    selftest "$EDGESEG_ROOT/releases/$1/bundle" ||
        fail "E-UPDATE-SELFTEST: release $1 failed its self-test; still on $before" || return 1
    note_links pending || unwritten || return 1
    if ! point current "releases/$1"; then
        recover
        unwritten
        return 1
    fi
    if ! restart; then
        recover
        fail "E-UPDATE-RESTART: the application did not open release $1; back on $(leads_to current)"
        return 1
    fi
    case "$before" in
    none | "releases/${1%%.*}"*) ;;  # a damaged release of the same bundle is none to go back to
    *)
        if ! point previous "$before"; then
            recover
            unwritten
            return 1
        fi
        ;;
    esac
    sync && rm -f "$EDGESEG_ROOT/pending" && sync
}

# Takes back a switch that was not finished; does nothing where there is none.
recover() {
    [ ! -f "$EDGESEG_ROOT/pending" ] || take_back pending
}

# Lets both links lead where they led when `note_links` wrote the file $1, and reopens the release where
# another one was in use. Nothing written, nothing to go back to: an empty file changes no link.
take_back() {
    back=""
    older=""
    { read -r back && read -r older; } <"$EDGESEG_ROOT/$1"
    found=$(leads_to current)
    case "$back" in
    "" | "$found") found="" ;;
    none) rm -f "$EDGESEG_ROOT/current" ;;
    *) [ -d "$EDGESEG_ROOT/$back/bundle" ] && point current "$back" ;;
    esac || fail "E-UPDATE-ROLLBACK: still on $found, not back on $back; \
ln -sfn releases/NAME $EDGESEG_ROOT/current, with the NAME of a whole one" || return 1
    case "$older" in
    "" | "$(leads_to previous)") ;;
    none) rm -f "$EDGESEG_ROOT/previous" ;;
    *) [ ! -d "$EDGESEG_ROOT/$older/bundle" ] || point previous "$older" ;;
    esac || unwritten || return 1
    sync && rm -f "$EDGESEG_ROOT/pending" && sync || return 1
    # With no release left there is nothing that the application could open.
    [ -z "$found" ] || restart || [ "$back" = none ] ||
        fail "E-UPDATE-ROLLBACK: back on $back, but the application was not restarted; restart it"
}

# Removes what neither link leads to and no switch can go back to.
prune() {
    rm -rf "$EDGESEG_ROOT/part"
    kept=$(leads_to current && leads_to previous && cat "$EDGESEG_ROOT/pending" 2>/dev/null)
    for release in "$EDGESEG_ROOT"/releases/*; do
        case " $(echo $kept) " in  # on one line
        *" releases/${release##*/} "*) ;;
        *) rm -rf "$release" ;;
        esac
    done
}

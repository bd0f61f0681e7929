
# Mender's update module, protocol v3: $1 is the state, $2 the folder with files/, header/ and tmp/.
# It is installed once and takes every bundle. Mender itself has compared device type and checksums;
# the L4T is part of the device type that the artifact names.

# Removes what an earlier update noted: this one's roll-back must not go there, nor one after a power
# cut.
forget() {
    noted=$EDGESEG_ROOT/before-mender
    [ ! -e "$noted" ] || { rm -f "$noted" && sync; } || unwritten
}

case "$1" in
NeedsArtifactReboot) echo No ;;
SupportsRollback) echo Yes ;;
ArtifactInstall)
    forget || exit 1  # first: what follows can refuse, and is rolled back as well
    begin "$(sed -n 's/.*"[a-z0-9-]*-l4t-\([0-9.]*\)".*/\1/p' "$2/header/header-info")" || exit 1
    note_links before-mender || unwritten || exit 1
    tar -xf "$2/files/bundle.tar" -C "$2/tmp" ||
        fail "E-UPDATE-WRITE: cannot unpack into $2/tmp; free space" || exit 1
    name=$(stage "$2/tmp/bundle" "") || exit 1
    activate "$name" || exit 1
    ;;
ArtifactCommit)
    selftest "$EDGESEG_ROOT/current/bundle" ||
        fail "E-UPDATE-SELFTEST: $(leads_to current) fails its self-test now; not committed" || exit 1
    ;;
ArtifactRollback)
    [ -f "$EDGESEG_ROOT/before-mender" ] || exit 0
    alone || exit 1
    take_back before-mender
    ;;
Cleanup)
    [ -d "$EDGESEG_ROOT" ] || exit 0
    alone || exit 1
    forget || exit 1
    prune
    ;;
esac


# Mender's update module, protocol v3: $1 is the state, $2 the folder with files/, header/ and tmp/.
# Mender itself has compared the device type and the checksums.
case "$1" in
NeedsArtifactReboot) echo No ;;
SupportsRollback) echo Yes ;;
ArtifactInstall)
    require_l4t "@L4T@" || exit 1
    mkdir -p "$EDGESEG_ROOT" || exit 1
    note_in_use before-mender || exit 1
    tar -xf "$2/files/bundle.tar" -C "$2/tmp" || exit 1
    id=$(stage "$2/tmp/bundle" "") || exit 1
    activate "$id" || exit 1
    ;;
ArtifactCommit) selftest "$EDGESEG_ROOT/current/bundle" || exit 1 ;;
ArtifactRollback)
    [ ! -f "$EDGESEG_ROOT/before-mender" ] || take_back "$(cat "$EDGESEG_ROOT/before-mender")"
    ;;
Cleanup)
    rm -f "$EDGESEG_ROOT/before-mender"
    prune
    ;;
esac

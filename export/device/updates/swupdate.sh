
# SWUpdate's shellscript: preinst before the archive is unpacked, postinst after it, postfailure
# where the update failed.
incoming="@INCOMING@"
case "$1" in
preinst)
    require_l4t "@L4T@" || exit 1
    rm -rf "$incoming"
    mkdir -p "$incoming" || exit 1
    ;;
postinst)
    id=$(stage "$incoming/bundle" "@BUNDLE@") || exit 1
    rm -rf "$incoming"
    activate "$id" || exit 1
    prune
    ;;
postfailure)
    rm -rf "$incoming"
    recover
    ;;
esac

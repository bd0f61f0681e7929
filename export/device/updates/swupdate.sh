
# SWUpdate's shellscript: preinst before the archive is unpacked, postinst after it, postfailure
# where the update failed.
incoming="@INCOMING@"
case "$1" in
preinst)
    begin "@L4T@" || exit 1
    { rm -rf "$incoming" && mkdir -p "$incoming"; } || unwritten || exit 1
    ;;
postinst)
    alone || exit 1
    name=$(stage "$incoming/bundle" "@BUNDLE@") || exit 1
    rm -rf "$incoming"
    activate "$name" || exit 1
    prune
    ;;
postfailure)
    rm -rf "$incoming"
    alone || exit 1
    recover
    result=$?
    prune
    exit $result
    ;;
esac


# RAUC's full custom handler: runs after RAUC has verified the signature and the compatible string,
# with the update's content mounted. A failure here makes `rauc install` fail.

# RAUC logs as an error what a handler says like this.
fail() {
    echo "<< error $1" >&2
    return 1
}

begin "@L4T@" || exit 1
source_folder="${RAUC_BUNDLE_MOUNT_POINT:-$RAUC_UPDATE_SOURCE}"
name=$(stage "$source_folder/bundle" "@BUNDLE@") && activate "$name"
result=$?
prune
exit $result

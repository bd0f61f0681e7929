
# RAUC's full custom handler: runs after RAUC has verified the signature and the compatible string,
# with the update's content mounted. A failure here makes `rauc install` fail.
require_l4t "@L4T@" || exit 1
source_folder="${RAUC_BUNDLE_MOUNT_POINT:-$RAUC_UPDATE_SOURCE}"
id=$(stage "$source_folder/bundle" "@BUNDLE@") || exit 1
activate "$id" || exit 1
prune


# Run at boot, before what opens current/bundle: takes back a switch that a power cut interrupted.
[ -d "$EDGESEG_ROOT" ] || exit 0  # no update has been here yet
EDGESEG_RESTART=true              # the application waits for this unit: it would wait for ever
alone && recover

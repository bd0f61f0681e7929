
# Run at boot, before what opens current/bundle: takes back a switch that a power cut interrupted.
EDGESEG_RESTART=true  # the application waits for this unit: restarting it here would wait for ever
recover

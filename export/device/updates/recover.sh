
# Run at boot, before what opens current/bundle: takes back a switch that a power cut interrupted.
recover

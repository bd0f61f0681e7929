"""Files that travel in a Jetson bundle and run on the device."""

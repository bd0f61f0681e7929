"""What runs on the device, on its own python3; nothing of it is installed there."""

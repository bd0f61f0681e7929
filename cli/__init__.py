"""The command line: only these modules know click. A command is a signature, a call, a print."""

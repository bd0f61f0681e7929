"""Devices over ssh: look, send, build, measure, predict; and recipes for the updates of a fleet.

Built from the outside in::

    registry    which devices there are, and the host key of each
    ssh         one connection: the system's ssh client with `onboard.agent` at its far end
    transfer    folders by content, resumed where they were cut
    jobs        build, benchmark and predict, each whole or not at all
    doctor      what a device has, what it lacks and the fix
    recipes     what RAUC, SWUpdate and Mender need to ship a bundle, with roll-back

Tested against a real sshd and an aarch64 userland under qemu; not yet run on a Jetson.
"""

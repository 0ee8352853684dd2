#!/bin/sh
# What runs in the guest: the daemon's tests on this kernel's own vsock.
mount -t tmpfs tmpfs /tmp
cd /forwarding/tests && exec /usr/bin/python3 -m pytest -p no:cacheprovider -rs --color=no test_daemon_forward.py

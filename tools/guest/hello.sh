#!/bin/sh
echo "Hello from an enclave. This is $(uname -s) $(uname -r), and I am process $$."
exec /bin/nsm

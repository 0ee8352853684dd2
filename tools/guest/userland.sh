#!/bin/sh
# What runs in the guest: the computations, then signatures both ways between this OpenSSL and the host's library.
cd /check || exit 1
python3 compute.py || exit 1
if openssl dgst -sha384 -verify host.pub -signature host.sig message >/dev/null; then
    echo 'host-signature "verified"'
else
    echo 'host-signature "refused"'
fi
openssl ecparam -name secp384r1 -genkey -noout -out /tmp/key &&
    openssl dgst -sha384 -sign /tmp/key -out /tmp/sig message || exit 1
echo "guest-key \"$(openssl ec -in /tmp/key -pubout -outform DER 2>/dev/null | openssl base64 -A)\""
echo "guest-signature \"$(openssl base64 -A -in /tmp/sig)\""

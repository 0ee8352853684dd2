#!/bin/busybox sh
# Runs every program of /tests, whose output goes to the console, and says how each ended.
b=/bin/busybox
$b mkdir -p /dev /proc /tmp
$b mount -t devtmpfs dev /dev
exec < /dev/console > /dev/console 2>&1
$b mount -t proc proc /proc
$b echo 1 > /proc/sys/kernel/printk
cd /tests
for test in *; do
    $b echo
    $b echo "@begin $test"
    $b timeout -s KILL 60 "./$test"
    code=$?
    $b echo
    $b echo "@end $test $code"
done
$b echo "@done"
$b reboot -f

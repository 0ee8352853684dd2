#!/bin/busybox sh
# The init of the guest that runs the kernel's own tests: says of each its exit code and what it printed.
b=/bin/busybox
$b mkdir -p /dev /proc /sys /tmp
$b mount -t devtmpfs dev /dev
exec < /dev/console > /dev/console 2>&1
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t tmpfs tmp /tmp
$b mkdir -p /dev/shm /dev/mqueue
$b mount -t tmpfs shm /dev/shm
$b mount -t mqueue mqueue /dev/mqueue
$b echo 1 > /proc/sys/kernel/printk
cd /tests
for test in *; do
    $b timeout -s KILL "$($b cat /timeout)" "./$test" > /tmp/output 2>&1
    code=$?
    $b echo
    $b echo "@begin $test"
    $b tail -c 20000 /tmp/output
    $b echo
    $b echo "@end $test $code"
done
$b echo "@done"
$b reboot -f

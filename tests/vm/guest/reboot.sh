# Three lives of one guest, counted in the disk's last block. The first two write until the host says `reset`, and are then
# reset without a word, requests in flight; each life first verifies a run of its own over the same blocks.
# Needs, set in front of it: DISK, QUEUES, MIB.
disk "$DISK"
last=$(($(cat "/sys/block/$DISK/size") / 8 - 1))
boot=$(dd if="/dev/$DISK" bs=4096 skip=$last count=1 2>/dev/null | tr -d '\0')
boot=$((${boot:-0} + 1))
verified $boot --bs=4k
[ $boot -lt 3 ] || { mark boot 3; exit 0; }
echo $boot | dd of="/dev/$DISK" bs=4096 seek=$last conv=sync,fsync 2>/dev/null || exit 6
fio_loop
mark boot $boot
hear reset
log
echo b >/proc/sysrq-trigger

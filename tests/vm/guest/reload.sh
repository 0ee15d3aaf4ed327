# Gives the disk's driver up and takes it again, three times; the host kills the target around it. Twice the disk is idle and
# what was written before must be there after; the third time requests are under way, and fio may fail, but not the rest.
# Needs, set in front of it: DISK, QUEUES, MIB.
reload() {
  device=$(basename "$(readlink -f "/sys/block/$DISK/device")")
  echo "$device" >/sys/bus/virtio/drivers/virtio_blk/unbind
  [ ! -b "/dev/$DISK" ] || { echo "$DISK is still there after the unbind"; exit 5; }
  # Whoever still holds the old disk also holds its name.
  killall fio 2>/dev/null
  wait
  echo "$device" >/sys/bus/virtio/drivers/virtio_blk/bind
  disk "$DISK"
}

disk "$DISK"
for turn in 1 2; do
  verified $turn --bs=4k
  mark idle
  hear reload-$turn
  reload
  verified $turn --bs=4k --verify_only
done
fio_loop
mark busy
hear reload-3
reload
verified 3 --bs=4k

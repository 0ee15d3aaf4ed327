# Zeroes and holes beside a load, until the host says `enough`: in each round a MiB behind the load's part of the disk is
# written, pieces of it are zeroed and discarded in turn, and the whole is compared with what it must be now.
# Needs, set in front of it: DISK, QUEUES, MIB.
wrong() { echo "wrong: $*"; exit 7; }
# In blocks of 4 KiB: where the MiB begins, how long it is, and how long each of its eight parts.
start=$((QUEUES * MIB * 256)) whole=256 part=32

disk "$DISK"
mark "queues $(ls "/sys/block/$DISK/mq" | wc -l)"
fio_loop
round=0
until heard enough; do
  round=$((round + 1))
  dd if=/dev/urandom of=/tmp/expected bs=64k count=$((whole / 16)) 2>/dev/null
  dd if=/tmp/expected of="/dev/$DISK" bs=64k seek=$((start / 16)) oflag=direct 2>/dev/null || wrong 'the disk cannot be written'
  piece=0
  while [ $piece -lt $((whole / part)) ]; do
    at=$((part * piece + 1)) count=$((13 + 2 * piece))
    zeroes=
    [ $((piece % 2)) = 1 ] || zeroes=-z
    # By its path: busybox has a blkdiscard of its own, which cannot write zeroes.
    /usr/sbin/blkdiscard $zeroes -o $(((start + at) * 4096)) -l $((count * 4096)) "/dev/$DISK" || wrong "blkdiscard $zeroes failed"
    # A file gives zeroes for what was discarded.
    dd if=/dev/zero of=/tmp/expected bs=4k seek=$at count=$count conv=notrunc 2>/dev/null
    piece=$((piece + 1))
  done
  dd if="/dev/$DISK" of=/tmp/found bs=64k skip=$((start / 16)) count=$((whole / 16)) iflag=direct 2>/dev/null || wrong 'the disk cannot be read'
  cmp -s /tmp/expected /tmp/found || wrong "round $round: the disk is not what was written"
  mark "round $round"
done
killall fio
wait

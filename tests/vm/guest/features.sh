# What a guest can ask of a disk besides reads and writes: its serial, discard, the write cache's setting, a read-only disk
# (the second one), and growing while in use. Needs, set in front of it: DISK, QUEUES, MIB.
wrong() { echo "wrong: $*"; exit 7; }
attribute() { cat "/sys/block/$DISK/$1"; }

disk "$DISK"
disk vdb
mark "serial $(attribute serial)"

[ "$(cat /sys/block/vdb/ro)" = 1 ] || wrong 'the second disk is not read-only'
dd if=/dev/vdb of=/dev/null bs=64k count=16 2>/dev/null || wrong 'the second disk cannot be read'
dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync 2>/dev/null && wrong 'the second disk can be written'

# A file below the disk gives zeroes for what was discarded.
[ "$(attribute queue/discard_max_bytes)" -gt 0 ] || wrong 'no discard'
[ "$(attribute queue/write_zeroes_max_bytes)" -gt 0 ] || wrong 'no write zeroes'
count_bytes() { dd if="/dev/$DISK" bs=4k skip="$1" count="$2" iflag=direct 2>/dev/null | tr -d '\0' | wc -c; }
dd if=/dev/urandom of="/dev/$DISK" bs=64k count=4 conv=fsync 2>/dev/null || wrong 'the disk cannot be written'
blkdiscard -o 65536 -l 65536 "/dev/$DISK" || wrong 'discard failed'
[ "$(count_bytes 16 16)" = 0 ] || wrong 'what was discarded is still there'
[ "$(count_bytes 0 16)" -gt 60000 ] || wrong 'the discard took what was before it'
[ "$(count_bytes 32 32)" -gt 120000 ] || wrong 'the discard took what was behind it'

for cache in 'write through' 'write back'; do
  echo "$cache" >"/sys/block/$DISK/cache_type"
  [ "$(attribute cache_type)" = "$cache" ] || wrong "the cache is $(attribute cache_type) and not $cache"
  verified 1 --bs=4k
done

fio_loop
before=$(attribute size)
mark "size $before"
tries=0
until [ "$(attribute size)" -gt "$before" ]; do
  tries=$((tries + 1))
  [ $tries -lt 300 ] || wrong "the disk still has $before sectors after 30 s"
  sleep 0.1
done
mark "size $(attribute size)"
killall fio
wait
dd if=/dev/urandom of="/dev/$DISK" bs=512 seek="$before" count=128 conv=fsync 2>/dev/null || wrong 'the new part cannot be written'

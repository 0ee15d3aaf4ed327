# A guest that has used its disk and now does nothing. Needs, set in front of it: DISK, QUEUES, MIB.
disk "$DISK"
verified 1 --bs=4k
mark idle
hear enough

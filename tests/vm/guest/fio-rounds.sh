# Rounds of verified random writes until the host says `enough`: odd rounds in blocks of 4 KiB, even rounds in mixed sizes
# with many segments. Needs, set in front of it: DISK, QUEUES, MIB.
disk "$DISK"
mark "queues $(ls "/sys/block/$DISK/mq" | wc -l)"
round=0
until heard enough; do
  round=$((round + 1))
  case $((round % 2)) in
    1) verified $round --bs=4k ;;
    0) verified $round --bsrange=4k-256k --blockalign=4k ;;
  esac
  mark "round $round"
done

# Gives the NVMe controller to the target, which serves it to clients inside this guest and is killed again and again.
wrong() { echo "wrong: $*"; exit 7; }
modprobe vfio_iommu_type1
modprobe vfio-pci
mkdir /dev/shm
mount -t tmpfs tmpfs /dev/shm
disk nvme0n1
REPRISE_NVME=$(reprise device list --json | sed -n 's/.*"address": "\(.*\)".*/\1/p')
export REPRISE_NVME REPRISE_BIN=/bin/reprise
reprise device bind "$REPRISE_NVME" || wrong 'not bound'
kill9 --ignored --nocapture --exact nvme_survives_twenty_kills || exit 8
reprise device unbind "$REPRISE_NVME" || wrong 'the target did not let the drive go'
disk nvme0n1

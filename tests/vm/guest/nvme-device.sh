# An operator's way from a drive that the kernel has to one that the target has, and back; then the conformance suite.
wrong() { echo "wrong: $*"; exit 7; }
# refused WORDS COMMAND…: fails with 1, and says WORDS.
refused() {
  words=$1
  shift
  "$@" >/tmp/said 2>&1
  rc=$?
  [ $rc = 1 ] && grep -qF "$words" /tmp/said || { cat /tmp/said; wrong "$* ended with $rc, wanted: $words"; }
}
# listed WORDS…: the one drive's line, in these columns.
listed() {
  reprise device list >/tmp/said
  tail -n +2 /tmp/said | sed 's/   */|/g' >/tmp/line
  [ "$(wc -l </tmp/line)" = 1 ] && grep -qxF "$*" /tmp/line || { cat /tmp/said; wrong "wanted: $*"; }
}

refused 'modprobe -a vfio_pci vfio_iommu_type1' reprise doctor
modprobe vfio_iommu_type1
modprobe vfio-pci
refused 'mount -t tmpfs tmpfs /dev/shm' reprise doctor
mkdir /dev/shm
mount -t tmpfs tmpfs /dev/shm
reprise doctor || wrong 'this guest lacks nothing'

disk nvme0n1
ADDRESS=$(reprise device list --json | sed -n 's/.*"address": "\(.*\)".*/\1/p')
[ -n "$ADDRESS" ] || wrong 'no address'
GROUP=$(basename "$(readlink "/sys/bus/pci/devices/$ADDRESS/iommu_group")")
listed "$ADDRESS|QEMU NVMe Ctrl|nvme|$GROUP|-|nvme0n1,nvme0n2|free"

mkswap /dev/nvme0n1 >/dev/null
swapon /dev/nvme0n1 || wrong 'no swap'
refused 'nvme0n1 is swap' reprise device bind "$ADDRESS"
listed "$ADDRESS|QEMU NVMe Ctrl|nvme|$GROUP|-|nvme0n1,nvme0n2|nvme0n1 is swap"
swapoff /dev/nvme0n1
sleep 1000 </dev/nvme0n2 &
refused "/dev/nvme0n2 is open in process $!" reprise device bind "$ADDRESS"
kill $!
wait $! 2>/dev/null
refused 'there is no PCI function' reprise device bind 0000:7e:00.0
refused 'is no NVMe controller' reprise device bind 0000:00:00.0
refused 'but nvme: there is nothing to take back' reprise device unbind "$ADDRESS"

reprise device bind "$ADDRESS" || wrong 'not bound'
[ ! -b /dev/nvme0n1 ] || wrong 'the kernel still has the disk'
listed "$ADDRESS|1b36:0010|vfio-pci|$GROUP|-|-|free"
reprise device bind "$ADDRESS" | grep -q already || wrong 'bound twice'
reprise doctor | grep -q "/dev/vfio/$GROUP can be opened" || wrong 'the group is not looked at'

# While a process has it, it is not given back: the kernel would wait for that process.
sleep 1000 <>"/dev/vfio/$GROUP" &
refused "/dev/vfio/$GROUP is open in process $!" reprise device unbind "$ADDRESS"
kill $!
wait $! 2>/dev/null

mark conformance
export REPRISE_NVME=$ADDRESS
echo 8 >/proc/sys/vm/nr_hugepages
reprise doctor | grep -q 'huge pages: 8 of 8 free' || wrong 'huge pages are not counted'
nvme_hardware --ignored --test-threads=1 --skip pulled_out --skip a_user_without_rights --skip too_little_locked || exit 8

# A user without rights, then with the group but a low limit of locked memory (8 MiB, the kernel's default).
mkdir -p /etc
echo 'user:x:1000:1000::/:/bin/sh' >/etc/passwd
echo 'user:x:1000:' >/etc/group
user() {
  program=$1
  shift
  start-stop-daemon -S -c user:user -x "/bin/$program" -- "$@"
}
user nvme_hardware --ignored --test-threads=1 a_user_without_rights || exit 10
refused "user 1000 may not open /dev/vfio/$GROUP" user reprise doctor
chown 1000 "/dev/vfio/$GROUP"
refused 'ulimit -l unlimited' user reprise doctor
user nvme_hardware --ignored --test-threads=1 too_little_locked || exit 11

reprise device unbind "$ADDRESS" | grep -q 'has the driver nvme' || wrong 'not given back'
disk nvme0n1
dd if=/dev/nvme0n1 of=/dev/null bs=64k count=16 2>/dev/null || wrong 'the disk cannot be read'
reprise device bind "$ADDRESS" || wrong 'not bound again'
reprise device unbind "$ADDRESS" || wrong 'not given back again'
reprise device bind "$ADDRESS" || wrong 'not bound for the last time'

# The host pulls the drive when it is told to.
nvme_hardware --ignored --test-threads=1 pulled_out || exit 9
[ "$(reprise device list | wc -l)" = 1 ] || wrong 'the drive is still listed'

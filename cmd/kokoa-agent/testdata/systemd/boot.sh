#!/bin/sh
# Boots systemd in the namespaces that it is started in, on a copy of this host's files
# that is gone afterwards, and runs the sessions of a folder there.
#
#   boot.sh DIR    DIR has the test's binary, "test", and the sessions; output is left in
#                  DIR/share/output
set -eu
dir=$1
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir/root"
mkdir "$dir/root/upper" "$dir/root/work" "$dir/root/all"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/root/upper,workdir=$dir/root/work" "$dir/root/all"
root=$dir/root/all
mount -t proc proc "$root/proc"
for place in run tmp sys dev; do
	mount -t tmpfs tmpfs "$root/$place"
done
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/dev/net" "$root/dev/shm" "$root/dev/pts" "$root/sys/fs/cgroup" "$root/sessions"
mknod -m 666 "$root/dev/net/tun" c 10 200
mount -t devpts devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --bind "$dir" "$root/sessions"
ip link set lo up
# Nothing of this host's own is started.
rm -rf "$root"/etc/systemd/system/*.wants
cat >"$root/etc/systemd/system/sessions.service" <<U
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
WorkingDirectory=/sessions
Environment=KOKOA_TEST_SCRIPTS=/sessions TMPDIR=/var/tmp
ExecStart=/sessions/test -test.run ^TestScripts$ -test.v
StandardOutput=file:/sessions/share/output
StandardError=inherit
ExecStopPost=/bin/systemctl --force --force poweroff
U
# What systemd hands to services it mounts, and they see that only where it is shared.
mount --make-rshared "$root"
exec chroot "$root" /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/usr/lib/systemd/systemd --system --unit=sessions.service --show-status=0 --log-target=null

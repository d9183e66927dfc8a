# The Debian package in a clean Debian: what it installs, that it works for an ordinary
# user, and that nothing of it is left. As root of the file system.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
apt() { apt-get -qy -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 "$@" >/var/log/out 2>&1 || { cat /var/log/out; exit 1; }; }

echo '== without what is recommended'
dpkg -i /root/coracle.deb >/dev/null
coracle --version
/usr/lib/coracle/drop-in/slirp4netns --version
/usr/lib/coracle/drop-in/fuse-overlayfs --version | head -n 1
ids='-K SUB_UID_MIN=10000 -K SUB_UID_MAX=50000 -K SUB_UID_COUNT=30000'
useradd --create-home $ids -K SUB_GID_MIN=10000 -K SUB_GID_MAX=50000 -K SUB_GID_COUNT=30000 user
as_user() { setpriv --reuid=user --regid=user --init-groups env HOME=/home/user "$@"; }
mkdir -p /srv/root/bin
cp /root/busybox /srv/root/bin/busybox
ln -s busybox /srv/root/bin/sh
# "Only root exists" is said on the error stream.
as_user coracle run --rm --rootfs /srv/root -- busybox echo 'it runs' 2>&1
dpkg -P coracle >/dev/null

echo '== with it'
# Everything is in the cache, but with --no-download apt loses the path of a file.
apt install /root/coracle.deb
dpkg-query -W -f '${Package} ${Status}\n' coracle fuse3 uidmap
as_user coracle doctor | grep '^ok' || true
tar -C /srv/root -cf /srv/root.tar .
as_user coracle image import /srv/root.tar small >/dev/null
as_user coracle run --rm small -- sh -c 'cd / && >x && busybox chown 7:8 x && busybox stat -c "owner %u:%g" x'
as_user coracle run --rm small -- sh -c 'busybox ip -4 addr show dev tap0 | busybox grep -o "inet [0-9.]*"'
as_user coracle image rm small >/dev/null
dpkg --verify coracle

echo '== to be read'
apt --no-download --no-install-recommends install man-db
man -w coracle coracle-run netstack overlayfs-fuse
man coracle | head -n 1 | tr -s ' '
for file in bash-completion/completions/coracle zsh/vendor-completions/_coracle fish/vendor_completions.d/coracle.fish; do
    test -s /usr/share/$file && echo "$file"
done
bash -c '. /usr/share/bash-completion/completions/coracle && complete -p coracle'
ls /usr/share/doc/coracle

echo '== removed'
dpkg -L coracle | sort >/root/installed
dpkg -P coracle >/dev/null
# Directories that other packages have stay, of course.
while read -r path; do
    if [ -e "$path" ] || [ -L "$path" ]; then
        dpkg -S "$path" >/dev/null 2>&1 || [ "$path" = /. ] || echo "left: $path"
    fi
done </root/installed
find / -xdev -path /root -prune -o -path /home -prune -o -path /proc -prune -o -path /var/cache/man -prune \
    -o -iname '*coracle*' -print -o -name '*netstack*' -print -o -name '*overlayfs-fuse*' -print

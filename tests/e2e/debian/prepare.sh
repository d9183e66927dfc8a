#!/bin/sh
# prepare.sh FILE: a Debian root file system as a tar archive, with the packages that
# the tests `overlay/debian-root` and `dist/package` install in it. As root; needs
# debootstrap and a mirror (MIRROR names another one), which the tests themselves do not.
set -eu
file=$(realpath "$1")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
debootstrap --variant=minbase bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" apt-get -q update
chroot "$root" apt-get -qy --no-install-recommends --download-only -o APT::Sandbox::User=root \
    install build-essential git man-db manpages manpages-dev uidmap fuse3
rm "$root/etc/resolv.conf"
# What an ordinary user may not make comes from the machine.
tar --numeric-owner --exclude='./dev/*' -C "$root" -cf "$file" .

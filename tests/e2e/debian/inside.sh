# A day's work in a Debian root file system: what it prints, and what it leaves, must not
# depend on what is below.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
apt() { apt-get -qy -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 "$@" >/var/log/out 2>&1 || { cat /var/log/out; exit 1; }; }

echo '== install'
apt --no-download --no-install-recommends install build-essential git man-db manpages manpages-dev
dpkg-query -W -f '${Package} ${Version} ${Status}\n' | sort

echo '== verify'
dpkg --verify
dpkg --audit

echo '== git'
export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'
git config --global user.email a@b
git config --global user.name n
git config --global pack.threads 1
git init -q -b main /srv/repo
cd /srv/repo
cp -r /usr/include src
git add .
git commit -qm one
git mv src moved
rm -r moved/linux
git commit -qam two
git checkout -q HEAD~1
git checkout -q main
git gc -q
git fsck --full --strict
git status --short
git rev-parse HEAD HEAD~1 'HEAD^{tree}'
git clone -q /srv/repo /srv/clone
git -C /srv/clone fsck --full
rm -r /srv/clone

echo '== build'
mkdir /srv/build
cd /srv/build
for i in $(seq 150); do
    echo "#include <stdio.h>
int f$i(int x) { return printf(\"%d\", x) + $i; }" >f$i.c
done
{
    for i in $(seq 150); do echo "int f$i(int);"; done
    echo 'int main(void) { int x = 0;'
    for i in $(seq 150); do echo "x += f$i(x);"; done
    echo 'return x == 0; }'
} >main.c
printf 'O := $(patsubst %%.c,%%.o,$(wildcard *.c))\nmain: libf.a main.o\n\tcc -o $@ main.o -L. -lf\nlibf.a: $(filter-out main.o,$O)\n\tar rcsD $@ $^\n' >Makefile
make -s -j2
./main | sha256sum
touch f7.c
make -s
make -q && echo 'nothing to be done'
strip main
install -m 4755 main /usr/local/bin/

echo '== mandb'
mandb --create 2>&1 | tail -n 3
man -w 2 rename
man -w 1 ls
whatis -s 3 printf
man 7 hier | head -n 12

echo '== remove'
apt purge git man-db
apt autoremove --purge
dpkg --verify
apt-get -q check 2>&1 | tail -n 1
ls /usr/bin | wc -l

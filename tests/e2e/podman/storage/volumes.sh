import
mkdir -p 'with:colon/sub' plain
echo low >'with:colon/file'
echo plain >plain/file
t named sh -c 'podman volume create v >/dev/null; podman run --rm -v v:/v bb sh -c "echo kept >/v/x; chown 3:4 /v/x"; podman run --rm -v v:/v bb sh -c "cat /v/x; stat -c %u:%g /v/x"; podman volume rm v'
t copy-up podman run --rm -v made:/etc bb sh -c 'ls /etc; cat /etc/passwd'
t bind podman run --rm -v ./plain:/p bb sh -c 'cat /p/file; echo w >/p/new; stat -c %u:%g /p/new'
t bound sh -c 'cat plain/new; stat -c %U plain/new'
t bind-ro podman run --rm -v ./plain:/p:ro bb sh -c 'echo w >/p/new2'
t overlay podman run --rm -v "$PWD/plain:/p:O" bb sh -c 'cat /p/file; echo changed >/p/file; cat /p/file; rm /p/new; ls /p'
t overlay-untouched sh -c 'ls plain; cat plain/file'
mkdir up work
t overlay-upper podman run --rm -v "$PWD/plain:/p:O,upperdir=$PWD/up,workdir=$PWD/work" bb sh -c 'echo upper >/p/upper; rm /p/file'
t overlay-upper-kept sh -c 'ls plain; ls -A up; podman unshare stat -c "%F %t:%T" up/file'
t bind-colon podman run --rm --mount type=bind,src="$PWD/with:colon",dst=/p bb cat /p/file
# What Podman 4.3 itself makes of a colon in -v; --rootfs and build know how to say it,
# and give the mount program `lowerdir=…\:…`. It must be as without a colon.
t run-colon sh -c 'podman run --rm -v "$PWD/with\:colon:/p:O" bb true 2>&1 | grep -o "incorrect volume format"'
printf 'FROM bb\nRUN cat /p/file && echo changed >/p/file && cat /p/file && echo new >/p/sub/new && find /p | sort\n' >Volume
build_on() { # SOURCE[:OPTIONS]
    podman build --no-cache -v "$1" -f Volume . >out 2>&1
    code=$?
    grep -e '^/p' -e '^low' -e '^changed' -e 'exit status' out
    return $code
}
cp -r 'with:colon' without
t plain-build build_on "$PWD/without:/p:O"
t colon-build build_on "$PWD/with\:colon:/p:O"
t colon-untouched sh -c 'cat with:colon/file; find with:colon | sort'
mkdir 'up:1' 'work:1' up1 work1
t plain-build-upper build_on "$PWD/without:/p:O,upperdir=$PWD/up1,workdir=$PWD/work1"
t plain-upper-kept sh -c 'cat up1/file up1/sub/new; find up1 | sort'
t colon-build-upper build_on "$PWD/with\:colon:/p:O,upperdir=$PWD/up\\:1,workdir=$PWD/work\\:1"
t colon-upper-kept sh -c 'cat up:1/file up:1/sub/new; find up:1 | sort'
t overlay-U podman run --rm -v "$PWD/plain:/p:U" bb stat -c %u:%g /p/file
t tmpfs podman run --rm --tmpfs /t:size=1m,mode=700 bb sh -c 'stat -c %a /t; dd if=/dev/zero of=/t/f bs=1M count=2 2>&1 | grep -c "No space"'
t read-only podman run --rm --read-only bb sh -c 'echo x >/x; echo y >/tmp/y && cat /tmp/y; echo z >/etc/passwd'
t read-only-no-tmpfs podman run --rm --read-only --read-only-tmpfs=false bb sh -c 'echo y >/tmp/y'
t volumes-from sh -c 'podman run --name pot -v /data bb sh -c "echo shared >/data/f"; podman run --rm --volumes-from pot bb cat /data/f; podman rm -v pot >/dev/null; podman volume ls -q'
t image-volume podman run --rm --mount type=image,src=bb,dst=/img bb sh -c 'ls /img; echo x >/img/x'
t image-volume-rw podman run --rm --mount type=image,src=bb,dst=/img,rw=true bb sh -c 'echo x >/img/x && cat /img/x'
t rootfs sh -c 'mkdir r; tar x -C r -f $ROOTFS; podman run --rm --rootfs "$PWD/r" sh -c "echo in >/in; cat /in"; cat r/in'
t rootfs-overlay sh -c 'podman run --rm --rootfs "$PWD/r:O" sh -c "echo o >/o; cat /o"; ls r/o'
mkdir 'r:oot'
tar x -C 'r:oot' -f "$ROOTFS"
t rootfs-plain podman run --rm --rootfs "$PWD/r:O" sh -c 'cat /etc/group; rm /etc/group; echo o >/etc/passwd; cat /etc/passwd; ls /etc'
t rootfs-colon podman run --rm --rootfs "$PWD/r:oot:O" sh -c 'cat /etc/group; rm /etc/group; echo o >/etc/passwd; cat /etc/passwd; ls /etc'
t rootfs-colon-untouched sh -c 'cat r:oot/etc/passwd; ls r:oot/etc'
t left until_ok gone "$(basename "$MOUNT")"

t from sh -c 'buildah from --name w scratch; buildah add -q w $ROOTFS / >/dev/null'
t run buildah run w sh -c 'echo hi >/hi; chown 7:8 /hi; chmod 2755 /tmp; cat /hi; id -u'
t run-network buildah run w curl -sS -m 10 http://10.77.0.2/hello
t run-name buildah run w curl -sS -m 10 http://outside.test/hello
t run-no-network buildah run --network none w curl -sS -m 3 http://10.77.0.2/hello
t run-code buildah run w sh -c 'exit 5'
t copy sh -c 'echo c >c; buildah copy -q --chown 3:4 w c /copied >/dev/null; buildah run w stat -c "%u:%g %a" /copied'
t config buildah config --env A=1 --workingdir /tmp --cmd 'cat /hi' w
mkdir vol
echo plain >vol/f
t volume-overlay buildah run -v "$PWD/vol:/v:O" w sh -c 'cat /v/f; echo changed >/v/f; cat /v/f'
t volume-untouched cat vol/f
cp -r vol 'v:ol'
t volume-colon buildah run -v "$PWD/v\\:ol:/v:O" w sh -c 'cat /v/f; echo changed >/v/f; cat /v/f'
t volume-colon-untouched cat v:ol/f
t commit sh -c 'buildah commit -q w made >/dev/null; buildah images --format "{{.Name}}"'
t mount buildah unshare sh -c 'm=$(buildah mount w); cat $m/hi; stat -c "%u:%g" $m/hi; buildah umount w >/dev/null'
t podman podman run --rm made
printf 'FROM made\nRUN echo 1 >/one\nRUN rm /hi; mkdir /hi; echo 2 >/hi/two\nRUN find /hi /one -type f | sort\n' >Containerfile
t bud sh -c 'buildah bud --layers -t bud . 2>/dev/null | grep -e "^/"'
t bud-cached sh -c 'buildah bud --layers -t bud2 . | grep -c "Using cache"'
t bud-run podman run --rm bud sh -c 'cat /hi/two /one; stat -c "%a" /tmp'
t bud-volume sh -c 'printf "FROM made\nRUN cat /v/f\n" | buildah bud -v "$PWD/vol:/v:O" -f - . 2>/dev/null | grep plain'
t from-image sh -c 'buildah from --name x bud; buildah run x cat /hi/two; buildah rm x w >/dev/null; buildah rmi -fa >/dev/null; buildah images -q; buildah containers -q' 2>/dev/null
t left until_ok gone "$(basename "$MOUNT")"
t by-path test -s ~/.by-path

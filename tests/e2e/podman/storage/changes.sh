import
podman run --name box bb sh -c '
    echo x >/new; mkdir -p /d/e; echo y >/d/e/f; rm /etc/group; echo more:x:1:1:::  >>/etc/passwd
    chmod 600 /bin/curl; chown 5:6 /tmp; chmod 1777 /tmp; mv /bin/getent /bin/moved; ln /new /new2
    rm -rf /usr; mkdir /usr; echo z >/usr/z; touch -d "2001-02-03 04:05:06" /old' >/dev/null
t diff sh -c 'podman diff box | sort'
t commit sh -c 'podman commit -q -c CMD=/bin/sh box made >/dev/null; podman inspect -f "{{len .RootFS.Layers}} {{.Config.Cmd}}" made'
t committed podman run --rm made sh -c 'cat /new /d/e/f /etc/passwd /usr/z; ls /etc /usr; stat -c "%n %a %u:%g %h" /bin/curl /new /new2; stat -c "%a %u:%g" /tmp; stat -c %Y /old; ls /bin/getent'
t diff-images sh -c 'podman image diff made | sort'
t changed-nothing sh -c 'podman run --name n bb true; podman diff n; podman rm n >/dev/null'
t read-only-diff sh -c 'podman run --name n bb sh -c "find / -xdev -type f -exec cat {} + >/dev/null"; podman diff n; podman rm n >/dev/null'
echo from-here >here
mkdir -p tree/sub
echo deep >tree/sub/file
ln -s sub/file tree/link
chmod 640 tree/sub/file
t cp-in sh -c 'podman cp here box:/cp; podman cp tree box:/cptree; podman start -a box >/dev/null 2>&1; podman commit -q box again >/dev/null; podman run --rm again sh -c "cat /cp /cptree/link; stat -c %a:%u:%g /cptree/sub/file"'
t cp-out sh -c 'podman cp box:/d out; podman cp box:/new - | tar t'
t cp-out-tree tree out
t cp-missing podman cp box:/nothing .
podman run -d --name r bb sleep 1000 >/dev/null
t cp-running sh -c 'podman cp here r:/tmp/x; podman exec r cat /tmp/x; podman exec r sh -c "echo back >/tmp/y"; podman cp r:/tmp/y y; cat y'
t mount podman unshare sh -c 'm=$(podman mount r); cat $m/tmp/x; echo outside >$m/tmp/z; podman unmount r >/dev/null; podman exec r cat /tmp/z'
t image-mount podman unshare sh -c 'm=$(podman image mount bb); ls $m; (echo x >$m/x) 2>&1 | sed "s/.*: //"; podman image unmount bb >/dev/null'
t unshare podman unshare sh -c 'id -u; cat /proc/self/uid_map | wc -l'
t size sh -c 'podman ps -as --format "{{.Size}}" | wc -l'
t rm sh -c 'podman rm -f -t 0 box r | sort'
t rename sh -c 'podman run -d --name x bb sleep 1000 >/dev/null; podman exec x sh -c "mv /etc /etc2 2>/dev/null; ls -d /etc2; rm -rf /var && mkdir /var && mv /var /var2 && rmdir /var2; echo \$?"; podman diff x | sort | head; podman rm -f -t 0 x >/dev/null'
t prune sh -c 'podman run bb true; podman system prune -af >/dev/null; podman ps -aq; podman images -q; ls ~/store/overlay | grep -v "^l$" | wc -l'
t left until_ok gone "$(basename "$MOUNT")"

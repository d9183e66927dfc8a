# A store of its own for each option.
fresh() { # OPTION…
    store=$((store + 1))
    storage_conf "$MOUNT" "$@"
    import
}
look='id -u; stat -c "%n %a %u:%g" /etc/passwd /bin/curl /tmp /bin; echo x >/new; chown 7:8 /new; chmod 4711 /new; stat -c "%a %u:%g" /new; mkdir /d; chmod 2755 /d; stat -c %a /d; ln -s new /soft; mkfifo /fifo; stat -c "%F %a" /fifo; mv /new /newer; stat -c "%a %u:%g" /newer'
fresh
t plain podman run --rm bb sh -c "$look"
fresh 'ignore_chown_errors = "true"'
t ignore-chown-errors podman run --rm bb sh -c "$look"
fresh 'force_mask = "shared"'
t force-mask-shared podman run --rm bb sh -c "$look"
t force-mask-on-disk stat -c %a ~/store"$store"/overlay/*/diff/etc/passwd
t force-mask-diff sh -c 'podman run --name box bb sh -c "echo y >/y; chown 7:8 /y; chmod 600 /y"; podman diff box | sort; podman commit -q box m >/dev/null; podman rm box >/dev/null; podman run --rm m stat -c "%a %u:%g" /y'
fresh 'force_mask = "700"'
t force-mask-700 podman run --rm bb sh -c "$look"
fresh 'mountopt = "nodev,metacopy=on"'
t mountopt podman run --rm bb sh -c "$look"
fresh 'mountopt = "nodev,fsync=0"'
t fsync podman run --rm bb sh -c "$look"
fresh 'size = "1m"'
t size podman run --rm bb true
fresh
t volatile podman run --rm --storage-opt overlay.mountopt=volatile bb sh -c "$look"
t info podman info --format '{{.Store.GraphDriverName}} {{index .Store.GraphStatus "Supports d_type"}} {{index .Store.GraphStatus "Native Overlay Diff"}}'
t mount-program podman --storage-opt overlay.mount_program="$MOUNT" run --rm bb true
t mount-program-missing sh -c 'podman --storage-opt overlay.mount_program=/nonexistent/mount run --rm bb true 2>&1 | tail -n 1 | grep -o "/nonexistent/mount[^:]*: .*"'

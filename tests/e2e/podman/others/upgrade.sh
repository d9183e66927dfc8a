# A store written with one program goes on with $OTHER, and back.
import
look='cat /file /hard /plain /d/f; ls /etc /d; stat -c "%n %a %u:%g" /file /d /d/f /s /bin/curl; stat -c %Y /old; readlink /l'
podman run --name box bb sh -c '
    echo one >/file; chown 7:8 /file; echo p >/plain; mkdir -p /d/e; echo f >/d/f; rm /etc/group; rm -rf /usr; mkdir /usr; echo u >/usr/u
    echo s >/s; chmod 4711 /s; ln -s file /l; ln /file /hard; touch -d "2001-02-03 04:05:06" /old; chmod 700 /bin/curl; mv /bin/getent /d/moved' >/dev/null
podman commit -q box first >/dev/null
t first-diff sh -c 'podman diff box | sort'
t first podman run --rm first sh -c "$look"

storage_conf "$OTHER"
t second-diff sh -c 'podman diff box | sort'
t second-image podman run --rm first sh -c "$look"
t second-start podman start -a box
t second-diff-after sh -c 'podman diff box | sort'
podman run --name pot first sh -c 'cat /hard; echo two >>/plain; cat /plain; rm -rf /d; mkdir /d; echo again >/d/f; rm /usr/u; echo n >/etc/group; chown 9 /s; rm /d/nothing' >out 2>&1
t second-changed cat out
t second-commit sh -c 'podman commit -q pot second >/dev/null; podman diff pot | sort'

storage_conf "$MOUNT"
t third-diff sh -c 'podman diff pot | sort'
t third podman run --rm second sh -c "$look; ls -A /usr; cat /etc/group"
t third-start podman start -a pot
t third-changes sh -c 'podman diff box | sort'
printf 'FROM second\nRUN echo three >/three && rm /file\nRUN cat /three /hard\n' >Containerfile
t third-build sh -c 'podman build --layers . | grep -v -e "^[0-9a-f]*$" -e "^-->"'
mkdir out.d
t export sh -c 'podman export pot | tar x -C out.d --exclude=bin --exclude="lib*"; chmod -R u+rwX out.d'
t tree tree out.d
t prune sh -c 'podman system prune -af >/dev/null; podman ps -aq; podman images -q'
t left until_ok gone "$(basename "$MOUNT")"

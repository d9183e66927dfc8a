import
mkdir reg
cat >reg.yml <<X
version: 0.1
storage: {filesystem: {rootdirectory: $PWD/reg}}
http: {addr: 127.0.0.1:5000}
log: {level: error}
X
docker-registry serve reg.yml >/dev/null 2>&1 &
registry=$!
until_ok curl -sSf http://127.0.0.1:5000/v2/
printf 'FROM bb\nRUN echo one >/one && chown 7:8 /one\nRUN rm /etc/group && echo two >/two\nRUN chmod 4755 /two && mkdir -p /deep/er && touch -d "2001-02-03 04:05:06" /deep\n' >Containerfile
podman build -q --layers -t localhost:5000/made . >/dev/null
t push podman push -q --tls-verify=false localhost:5000/made
t forget sh -c 'podman rmi -fa >/dev/null; podman images -q'
t pull sh -c 'podman pull -q --tls-verify=false localhost:5000/made >/dev/null'
t layers podman inspect -f '{{len .RootFS.Layers}}' localhost:5000/made
t pulled podman run --rm localhost:5000/made sh -c 'cat /one /two; stat -c "%n %a %u:%g %s" /one /two /deep/er; stat -c %Y /deep; ls /etc'
t again sh -c 'podman pull -q --tls-verify=false localhost:5000/made >/dev/null'
t missing sh -c 'podman pull -q --tls-verify=false localhost:5000/nothing 2>&1 | grep -o "manifest unknown" | head -n 1'
t skopeo sh -c 'skopeo copy -q --src-tls-verify=false docker://localhost:5000/made oci:layout:made; umoci unpack --rootless --image layout:made bundle >/dev/null; cat bundle/rootfs/one bundle/rootfs/two; podman pull -q oci:layout:made >/dev/null; podman images --format "{{.Repository}}" | sort'
t run-from-registry podman run --rm --pull=always -q --tls-verify=false localhost:5000/made cat /one
kill $registry

import
mkdir ctx
echo first >ctx/a
mkdir ctx/dir
echo second >ctx/dir/b
ln -s a ctx/link
{
    echo 'FROM bb'
    echo 'COPY . /ctx/'
    echo 'RUN mkdir -p /data/sub && echo base >/data/file && chown -R 7:8 /data && chmod 2775 /data/sub'
    echo 'RUN ln /data/file /data/hard && ln -s file /data/soft && mkfifo /data/fifo'
    echo 'RUN rm -rf /ctx/dir && mkdir /ctx/dir && echo new >/ctx/dir/c'
    echo 'RUN mv /ctx/a /ctx/moved && chmod 4711 /ctx/moved && chown 7 /ctx/moved'
    echo 'RUN touch -d "2001-02-03 04:05:06" /data/old && echo more >>/data/hard'
    echo 'ENV X=1'
    echo 'WORKDIR /data'
    echo 'USER 7:8'
    echo 'RUN id && echo mine >mine && umask 027 && mkdir private'
    echo 'USER 0'
    for i in $(seq 12); do echo "RUN echo $i >>/data/layers && echo $i >/data/layer-$i && rm -f /data/layer-\$(($i - 2))"; done
    echo 'CMD ["cat", "/data/layers"]'
} >ctx/Containerfile
rm -f ctx/Containerfile.ignored
t build sh -c 'podman build -q --layers -t built ctx >/dev/null'
t layers podman inspect -f '{{len .RootFS.Layers}}' built
t run podman run --rm built
t links podman run --rm built sh -c 'find /data /ctx ! -type d | sort | xargs stat -c "%n %h %a %u:%g"; find /data /ctx -type d | sort | xargs stat -c "%n %a %u:%g"; cat /data/file'
t times podman run --rm built stat -c '%n %Y' /data/old
t cached sh -c 'podman build --layers -t built2 ctx | grep -c "Using cache"'
printf 'FROM bb\nRUN echo one >/file\nRUN echo two >>/file && rm /etc/group\n' >Squash
t squashed sh -c 'podman build -q --squash -t one -f Squash . >/dev/null; podman inspect -f "{{len .RootFS.Layers}}" one; podman run --rm one cat /file'
printf 'FROM bb\nRUN curl -sS -m 3 http://10.77.0.2/hello\n' >Apart
t no-network sh -c 'podman build --network none -f Apart . 2>&1 | grep -o "curl: .*"'
printf 'FROM bb\nRUN curl -sS -m 10 http://10.77.0.2/hello >/page && cat /page\nRUN curl -sS -m 10 http://outside.test/hello\n' >Net
t network sh -c 'podman build --no-cache -f Net . | grep hello'
printf 'FROM bb\nRUN exit 9\n' >Bad
t fails sh -c 'podman build -f Bad . 2>&1 | grep -o "exit status 9"'
printf 'FROM bb AS one\nRUN echo made >/made\nFROM bb\nCOPY --from=one --chown=7:8 /made /got\nRUN stat -c "%%u:%%g %%a" /got && cat /got\n' >Stages
t stages sh -c 'podman build -f Stages . | grep -A1 "^7:8"'
printf 'FROM bb\nRUN --mount=type=cache,target=/cache echo cached >/cache/x && ls /cache\nRUN --mount=type=bind,src=ctx,target=/mnt ls /mnt\n' >Mounts
t mounts sh -c 'podman build -f Mounts . | grep -v -e "^[0-9a-f]*$" -e "^-->"'
podman create --name box built >/dev/null
t export sh -c 'podman export box | tar tv --numeric-owner | grep -v -e " ./bin" -e " ./lib" -e "[.]/usr" -e " bin/" -e " lib" -e " usr/" | sed "s/ 20[0-9-]* [0-9:]* / /" | sort -k3'
mkdir out
t exported-contents sh -c 'podman export box | tar x -C out --exclude=bin --exclude=lib* --exclude=usr; chmod -R u+rwX out'
t exported-tree tree out
t save-load sh -c 'podman save -q -o built.tar built; podman rm box >/dev/null; podman rmi -fa >/dev/null; podman load -q -i built.tar | sed "s/.*: //"; podman run --rm built'
t by-path test -s ~/.by-path

# What the desktops of the next Debian have in common; see ../src/next.rs, which runs one of the other files here in a
# chroot, in namespaces that end with it. /ipc has what is tried, /pictures is where pictures and logs go.

set -u
export HOME=/run/home XDG_RUNTIME_DIR=/run/user LANG=C.UTF-8 LC_ALL=C.UTF-8 LIBGL_ALWAYS_SOFTWARE=1 NO_AT_BRIDGE=1
mkdir -p "$HOME/Inbox" "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
cd "$HOME" || exit 1

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# until_line FILE PATTERN: waits until the file has such a line.
until_line() {
    timeout 60 sh -c 'tail --lines=+1 --follow=name --retry "$1" 2>/dev/null | grep --quiet --max-count=1 -e "$2"' - "$1" "$2" ||
        fail "$1 has no line like: $2"
    echo "ok: $2"
}

# until_true COMMAND…: waits until it succeeds, for what tells nobody when it is ready.
until_true() {
    local deadline=$((SECONDS + 60))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "never true: $*"
        sleep 0.2
    done
}

# A screen, without one.
screen() {
    export DISPLAY=:7
    Xvfb "$DISPLAY" -screen 0 1280x800x24 -nolisten tcp &
    until_true xdotool getdisplaygeometry
    # For what the bus starts.
    dbus-update-activation-environment --all
}

# Things do not stop moving with a signal to everybody; so pictures, which only people look at, are made a little later.
picture() {
    sleep 2
    import -window root "/pictures/$1.png"
}

icons() {
    mkdir -p "$HOME/.local/share/icons"
    cp -r /ipc/desktop/session/icons/hicolor "$HOME/.local/share/icons/"
}

manager() {
    busctl --user call org.example.IPC /org/example/IPC org.example.IPC "$@" | cut -d '"' -f 2
}

service() {
    /ipc/ipcd --bus session >/pictures/next-ipcd.log 2>&1 &
    until_true busctl --user get-property org.example.IPC /org/example/IPC org.example.IPC Version
}

# Two interfaces, a relay in which data moves, a queue with a message, and a pipe with seven bytes.
objects() {
    ip link add left type veth peer name right
    ip link set left up
    ip link set right up
    ip address add 10.77.0.1/24 dev left
    source=$(manager Create 'sa{sv}' "fifo:path=$HOME/bell" 0)
    manager Create 'sa{sv}' unix:pair 0 >/dev/null
    sink=$(manager Create 'sa{sv}' unix:pair 0)
    manager Relay 'ooa{sv}' "$source" "$sink" 0 >/dev/null
    queue=$(manager Create 'sa{sv}' sysvmq:key=private 0)
    busctl --user call org.example.IPC "$queue" org.example.IPC.Messages SendText 'sa{sv}u' one 0 1000
    pipe=$(manager Create 'sa{sv}' pipe: 0)
    busctl --user call org.example.IPC "$pipe" org.example.IPC.Stream WriteText su 'seven b' 1000
    (
        exec 3>"$HOME/bell"
        while :; do
            for count in 1 2 3; do
                head -c $((count * 1000)) /dev/zero >&3
                sleep 1
            done
        done
    ) &
}

#!/bin/sh
# The life of the package on a machine with systemd: installed, used, upgraded, purged. Runs as root in a
# fresh container (cargo xtask package --test starts it), with the packages in /package. Every step says
# what it shows; the first that fails ends it.
set -eu

name=org.example.IPC
manager=/org/example/IPC

step() {
    echo "==> $*"
}

fail() {
    echo "FAILED: $*"
    systemctl --no-pager --full status ipcd.service ipcd-spawner.service ipcd-spawner.socket || true
    journalctl --no-pager --quiet --lines=60 || true
    exit 1
}

same() { # what, is, should be
    [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"
}

as() { # user, command...
    user=$1
    shift
    setpriv --reuid="$user" --regid="$user" --init-groups --reset-env "$@"
}

call() { # user, path, interface, member, signature and arguments...
    user=$1
    shift
    as "$user" busctl --system --timeout=20 call "$name" "$@"
}

refused() { # what, command...
    what=$1
    shift
    if "$@" 2>/tmp/why; then
        fail "$what is not refused"
    fi
}

# As the documentation says it, with either bus.
reload() {
    busctl call org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig || fail "the bus reads nothing anew"
}

denied() { # what, command...
    refused "$@"
    grep -q -i 'denied\|not authorized\|rejected' /tmp/why || fail "$1 is refused for another reason: $(cat /tmp/why)"
}

# An endpoint of alice, with something in it that nobody else holds.
create_pipe() { # text
    pipe=$(call alice $manager $name Create 'sa{sv}' pipe: 0 | cut -d '"' -f 2) || fail "alice cannot create"
    call alice "$pipe" $name.Stream WriteText su "$1" 0 >/dev/null || fail "alice cannot write"
}

kept() { # text
    same "what is in $pipe" "$(call alice "$pipe" $name.Stream ReadText uu 100 0)" "s \"$1\""
}

# The processes that run our program, also when its file is gone.
ours() {
    for exe in /proc/[0-9]*/exe; do
        case $(readlink "$exe" || true) in
        /usr/bin/ipcd*) basename "${exe%/exe}" ;;
        esac
    done
}

ours_of() { # user
    for pid in $(ours); do
        [ "$(stat -c %U "/proc/$pid")" != "$1" ] || echo "$pid"
    done
}

started_with() { # argument, pids
    for pid in $(shift && echo "$@"); do
        ! grep -q -z -x -e "$1" "/proc/$pid/cmdline" || echo "$pid"
    done
}

main_pid() {
    systemctl show --property=MainPID --value "$1"
}

# Every file of the system, but for what changes by itself and what dpkg and the tools keep for themselves.
files() {
    find / -xdev \( -path /package -o -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run \
        -o -path /var/log -o -path /var/lib/dpkg -o -path /var/cache -o -path /var/lib/systemd \
        -o -path /var/tmp \) -prune -o -print | sort
}

step "the system: systemd $(systemctl --version | cut -d ' ' -f 2 | head -n 1), $(basename "$(systemctl show -P FragmentPath dbus.service)")"
for user in alice bob; do
    useradd --create-home "$user"
done

step "without installing it, as the README says"
dpkg-deb --extract /package/old.deb /tmp/unpacked
useradd --system --shell /usr/sbin/nologin ipcd
cp /tmp/unpacked/usr/share/dbus-1/system.d/$name.conf /usr/share/dbus-1/system.d/
reload
/tmp/unpacked/usr/bin/ipcd --bus system &
foreground=$!
timeout 20 sh -c "until busctl --system status $name; do sleep 0.1; done" >/dev/null 2>&1 || fail "it is not on the bus"
call alice $manager $name Create 'sa{sv}' pipe: 0 || fail "alice cannot call"
kill $foreground
wait $foreground || fail "it ends with $?"
rm /usr/share/dbus-1/system.d/$name.conf
rm -r /tmp/unpacked
userdel ipcd
reload

# Made beforehand: useradd leaves copies of the databases beside them.
files >/tmp/before

step "install"
dpkg --install /package/old.deb
getent passwd ipcd >/dev/null || fail "there is no user ipcd"
same "the mode of /run/ipcd" "$(stat -c '%U %G %a' /run/ipcd)" "root ipcd 750"
same "the state of ipcd.service" "$(systemctl is-active ipcd.service || true)" inactive
dpkg --listfiles ipcd | grep -v '/\.$' >/tmp/installed

step "an ordinary user calls, and the bus starts the service"
call alice $manager org.freedesktop.DBus.Peer Ping || fail "alice cannot call"
same "the state of ipcd.service" "$(systemctl is-active ipcd.service)" active
same "the user of the front" "$(stat -c %U "/proc/$(main_pid ipcd.service)")" ipcd
same "the capabilities of the front" \
    "$(grep -h ^Cap "/proc/$(main_pid ipcd.service)/status" | cut -f 2 | sort -u)" 0000000000000000

step "an endpoint of one user is nobody else's"
create_pipe first
refused "bob's look at alice's endpoint" call bob "$pipe" $name.Stream ReadText uu 100 0
worker=$(ours_of alice)
same "the number of alice's workers" "$(echo "$worker" | wc -w)" 1
same "the capabilities of the worker" \
    "$(grep -h ^Cap "/proc/$worker/status" | cut -f 2 | sort -u)" 0000000000000000
same "the number of control sockets that systemd keeps, of alice's worker and of bob's" \
    "$(systemctl show --property=NFileDescriptorStore --value ipcd.service)" 2
kept first

step "what is made for a user is the user's, and no more than he could make himself"
for address in fifo:path=/home/alice/bell unix:path=/home/alice/socket mmap:path=/home/alice/memory,size=4096 \
    unix:pair mmap:size=4096 posixsem:name=/alice inotify:path=/home/alice tcp:host=127.0.0.1,port=0 \
    sysvmq:key=private posixmq:name=/alice sysvshm:key=private,size=4096 posixshm:name=/alice,size=4096 futex: \
    udp:host=127.0.0.1,port=0; do
    call alice $manager $name Create 'sa{sv}' "$address" 0 >/dev/null || fail "alice cannot create $address"
done
for file in bell socket memory; do
    same "the owner of $file" "$(stat -c '%U %G' "/home/alice/$file")" "alice alice"
done
# What the sandbox allows for these alone: a thread's own undo list, a process that receives signals.
set=$(call alice $manager $name Create 'sa{sv}' sysvsem:key=private,values=1 0 | cut -d '"' -f 2)
call alice "$set" $name.Semaphore Acquire 'ua{sv}' 1000 0 >/dev/null || fail "alice cannot have a lease on a set"
mailbox=$(call alice $manager $name Create 'sa{sv}' signal:numbers=SIGUSR1 0 | cut -d '"' -f 2)
pid=$(as alice busctl --system get-property $name "$mailbox" $name.Mailbox Pid | cut -d " " -f 2)
same "the user of the mailbox" "$(stat -c %U "/proc/$pid")" alice
call alice "$mailbox" $name.Endpoint Close || fail "alice cannot close her mailbox"
same "the owner of the semaphore" "$(stat -c '%U %G' /dev/shm/sem.alice)" "alice alice"
refused "a FIFO where alice may not write" call alice $manager $name Create 'sa{sv}' fifo:path=/root/bell 0
refused "bob's look into alice's files" call bob $manager $name Attach 'sa{sv}' mmap:path=/home/alice/memory 0
refused "a path of one who lives among other mounts" \
    unshare --mount setpriv --reuid=alice --regid=alice --init-groups \
    busctl call $name $manager $name Create 'sa{sv}' fifo:path=/home/alice/other 0
grep -q -i mount /tmp/why || fail "a confined caller is told: $(cat /tmp/why)"
[ ! -e /home/alice/other ] || fail "a confined caller has made /home/alice/other"
rm /home/alice/bell /home/alice/socket /home/alice/memory

step "what the kernel tells everybody is told by a process that is nobody's"
links=$(call alice $manager/netlink $name.Netlink Links) || fail "alice cannot ask for the links"
case $links in *'"lo"'*) ;; *) fail "the links are $links" ;; esac
for pid in $(ours_of ipcd); do
    [ "$pid" = "$(main_pid ipcd.service)" ] || herald=$pid
done
same "the capabilities of the herald" "$(grep -h ^Cap "/proc/$herald/status" | cut -f 2 | sort -u)" 0000000000000000
echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6
as alice timeout 20 sh -c "until busctl --system call $name $manager/netlink $name.Netlink Since t 0 |
    grep -q AddressRemoved; do sleep 0.1; done" || fail "nobody tells that an address was removed"

step "what is declared for a user is there without anybody calling"
mkdir -p /etc/ipcd/users/alice/relays.d
cp /usr/share/doc/ipcd/examples/ipcd-relays@.service /etc/systemd/system/
cat >/etc/ipcd/users/alice/relays.d/spool.toml <<END
[relay.spool]
source = { create = "fifo:path=/home/alice/spool", hold = true }
sink = { create = "fifo:path=/home/alice/out", hold = true }
END
as alice /usr/bin/ipcd --check-relays --relays /etc/ipcd/users/alice/relays.d || fail "the file is not valid"
systemctl daemon-reload
systemctl start ipcd-relays@alice.service || fail "the unit does not start"
same "its user" "$(stat -c %U "/proc/$(main_pid ipcd-relays@alice.service)")" alice
timeout 20 sh -c 'until [ -p /home/alice/spool ] && [ -p /home/alice/out ]; do sleep 0.1; done' || fail "no FIFO is made"
echo declared >/home/alice/spool
same "what comes out of the relay" "$(timeout 20 head -n 1 /home/alice/out)" declared
systemctl stop ipcd-relays@alice.service
rm -r /etc/ipcd /etc/systemd/system/ipcd-relays@.service /home/alice/spool /home/alice/out
systemctl daemon-reload

step "published files, without a right to mount: in a user namespace of alice's, whom nobody else can follow"
# Where udev has not made it: containers may have no devices of their own.
[ -c /dev/fuse ] || mknod -m 666 /dev/fuse c 10 229 || true
if [ -c /dev/fuse ] && as alice sh -c 'exec 3<>/dev/fuse; exec unshare --user --map-root-user --mount true' 2>/dev/null; then
    live=$(call alice $manager $name Create 'sa{sv}' fuse: 0 | cut -d '"' -f 2) || fail "alice cannot create fuse:"
    call alice "$live" $name.Filesystem PublishText ss sound/volume 55 || fail "alice cannot publish"
    call alice "$live" $name.Endpoint Inspect | grep -q served || fail "the mount is not served"
    call alice $manager/fuse $name.Mechanism List 'a{sv}' 0 | grep -q "u $(id -u alice)" || fail "the mount is not listed"
    ! call bob $manager/fuse $name.Mechanism List 'a{sv}' 0 | grep -q "u $(id -u alice)" || fail "bob sees alice's mount"
    same "the processes that have made it" "$(grep -lx ipcd-mounter /proc/[0-9]*/comm 2>/dev/null || true)" ""
    call alice "$live" $name.Endpoint Close || fail "alice cannot close her mount"
else
    echo "SKIPPED: no /dev/fuse here, or users may not mount in namespaces of theirs"
fi
refused "a mount on a path" call alice $manager $name Create 'sa{sv}' fuse:path=/home/alice 0
! grep -q ' fuse.ipcd ' /proc/self/mountinfo || fail "something is mounted"

step "the policy is in force: no property is set"
denied "Properties.Set" call alice $manager org.freedesktop.DBus.Properties Set ssv $name Version s no

step "an administrator opens it to a group only, as the cookbook says"
cp /usr/share/doc/ipcd/examples/$name-group.conf /etc/dbus-1/system.d/
groupadd --system ipc && usermod --append --groups ipc alice
reload
create_pipe member
kept member
denied "a call of one who is not in the group" call bob $manager org.freedesktop.DBus.Peer Ping
rm /etc/dbus-1/system.d/$name-group.conf
gpasswd --delete alice ipc >/dev/null
groupdel ipc
reload
call bob $manager org.freedesktop.DBus.Peer Ping

step "and closes one interface"
cp /usr/share/doc/ipcd/examples/$name-no-memory.conf /etc/dbus-1/system.d/
reload
for user in alice root; do
    memory=$(call $user $manager $name Create 'sa{sv}' mmap:size=4096 0 | cut -d '"' -f 2) || fail "$user cannot create"
    read="call $user $memory $name.Memory Read tt 0 4"
    case $user in
    root) $read || fail "root cannot read" ;;
    *) denied "Memory.Read" $read ;;
    esac
done
create_pipe other
kept other
rm /etc/dbus-1/system.d/$name-no-memory.conf
reload
memory=$(call alice $manager $name Create 'sa{sv}' mmap:size=4096 0 | cut -d '"' -f 2)
call alice "$memory" $name.Memory Read tt 0 4 || fail "alice cannot read"

step "the front is restarted: endpoints stay"
create_pipe second
before=$(main_pid ipcd.service)
systemctl restart ipcd.service
[ "$(main_pid ipcd.service)" != "$before" ] || fail "the front is the same"
kept second

step "the front crashes: endpoints stay"
create_pipe third
before=$(main_pid ipcd.service)
systemctl kill --signal=KILL --kill-who=main ipcd.service
tail --pid="$before" -f /dev/null
# Type=notify: it returns when the next one is ready.
systemctl start ipcd.service
kept third

step "upgrade: the front is the new one, the spawner and all endpoints stay"
create_pipe fourth
front=$(main_pid ipcd.service) spawner=$(main_pid ipcd-spawner.service)
dpkg --install /package/new.deb
[ "$(main_pid ipcd.service)" != "$front" ] || fail "the front is the old one"
same "the spawner" "$(main_pid ipcd-spawner.service)" "$spawner"
kept fourth
create_pipe fifth
kept fifth

step "the package for desktops: all of it is where desktops look, and goes again"
files >/tmp/without
dpkg --install /package/desktop.deb
share=/usr/share
for file in $share/gnome-shell/extensions/ipc@example.org/metadata.json \
    $share/gnome-shell/extensions/ipc@example.org/schemas/gschemas.compiled \
    $share/gnome-shell/extensions/ipc@example.org/locale/de/LC_MESSAGES/ipc@example.org.mo \
    $share/plasma/plasmoids/$name/metadata.json $share/plasma/plasmoids/$name/contents/ui/main.qml \
    $share/applications/$name.desktop $share/applications/$name.Tray.desktop $share/metainfo/$name.metainfo.xml \
    $share/icons/hicolor/scalable/apps/$name.svg $share/icons/hicolor/symbolic/apps/$name-symbolic.svg; do
    [ -f "$file" ] || fail "$file is missing"
    as alice test -r "$file" || fail "alice cannot read $file"
done
for file in $share/applications/$name*.desktop; do
    as alice sh -c "command -v $(sed -n 's/^Exec=\([^ ]*\).*/\1/p' "$file")" >/dev/null || fail "the program of $file is missing"
done
as alice ipc-tray --version || fail "ipc-tray does not run"
as alice dbus-run-session -- busctl --user call $name $manager org.freedesktop.DBus.Peer Ping ||
    fail "a session bus does not start the service"
refused "the removal of what it needs" dpkg --remove ipcd
dpkg --purge ipcd-desktop
files >/tmp/again
diff /tmp/without /tmp/again || fail "files of the package for desktops are left"

step "without systemd the bus starts it by itself, and one signal ends it"
# A second system bus, at the same place for those who see other mounts.
unshare --mount sh -euc '
    mount -t tmpfs -o mode=755 bus /run/dbus
    dbus-daemon --system --fork --nosyslog --nopidfile --print-pid >/tmp/bus
    setpriv --reuid=alice --regid=alice --init-groups \
        busctl call org.example.IPC /org/example/IPC org.example.IPC Create "sa{sv}" pipe: 0
' || fail "the bus does not start it"
all=$(started_with --bus $(ours))
same "the number of its processes: spawner, front, herald, alice's worker" "$(echo "$all" | wc -w)" 4
spawner=$(started_with --bus $(ours_of root))
kill "$spawner"
for pid in $all; do
    timeout 10 tail --pid="$pid" -f /dev/null || fail "process $pid goes on"
done
kill "$(cat /tmp/bus)"

step "purge: nothing is left"
dpkg --purge ipcd
for pid in $(ours); do
    timeout 10 tail --pid="$pid" -f /dev/null || fail "still running: $(tr '\0' ' ' <"/proc/$pid/cmdline")"
done
while read -r file; do
    [ -d "$file" ] || [ ! -e "$file" ] || fail "$file is left"
done </tmp/installed
files >/tmp/after
diff /tmp/before /tmp/after || fail "files are left"
[ ! -e /run/ipcd ] || fail "/run/ipcd is left"
! getent passwd ipcd || fail "user ipcd is left"
! getent group ipcd || fail "group ipcd is left"
same "the units that are left" "$(systemctl list-units --all --plain --no-legend 'ipcd*')" ""
refused "the name" call alice $manager org.freedesktop.DBus.Peer Ping

echo PASSED

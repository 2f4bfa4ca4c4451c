# GNOME Shell of the next Debian, which loads ES modules, with the extension.

. /ipc/next/common.sh
export GSETTINGS_BACKEND=keyfile
# The shell does not start without a system bus; nobody is on this one.
DBUS_SYSTEM_BUS_ADDRESS=$(dbus-daemon --session --fork --nopidfile --print-address)
export DBUS_SYSTEM_BUS_ADDRESS
mkdir -p "$HOME/.config/glib-2.0/settings"
cat >"$HOME/.config/glib-2.0/settings/keyfile" <<'KEYS'
[org/gnome/shell]
enabled-extensions=['ipc@example.org']
welcome-dialog-last-shown-version='999'
KEYS

evaluate() {
    gdbus call --session -d org.gnome.Shell -o /org/gnome/Shell -m org.gnome.Shell.Eval "$1"
}

# rows TEXT: whether the menu has a line with it.
rows() {
    evaluate "(() => { const texts = []; const look = it => { if (it.text) texts.push(it.text);
        it.get_children().forEach(look); }; look($menu.box); return texts.join('|'); })()" | grep --quiet --fixed-strings "$1"
}

menu="Main.panel.statusArea['ipc@example.org'].menu"
gnome-extensions install --force /ipc/extension.zip || fail "the extension cannot be installed"
service
objects
gnome-shell --version
gnome-shell --headless --no-x11 --virtual-monitor 1280x800 --unsafe-mode >/pictures/gnome-next.log 2>&1 &
until_true busctl --user call org.gnome.Shell.Screenshot /org/gnome/Shell/Screenshot org.freedesktop.DBus.Peer Ping
opened() {
    evaluate "Main.overview.hide(); $menu.open(); $menu.isOpen" | grep --quiet "true, 'true'"
}
until_true opened
for text in left 10.77.0.1/24 '1 message' 'Watch This Folder'; do
    until_true rows "$text"
    echo "ok: $text"
done
sleep 2
gdbus call --session -d org.gnome.Shell.Screenshot -o /org/gnome/Shell/Screenshot \
    -m org.gnome.Shell.Screenshot.Screenshot false false /pictures/gnome-next.png
echo "PASSED"

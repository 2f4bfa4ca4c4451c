# Plasma with the widget: in a panel, with its popup, on the desktop; what it knows is in its log. For plasma.sh and
# plasma5.sh, which say what differs: version, name (of pictures), install, and places in pictures to click at.

export XDG_CURRENT_DESKTOP=KDE KDE_FULL_SESSION=true KDE_SESSION_VERSION=$version QT_QPA_PLATFORM=xcb
export QT_QPA_PLATFORMTHEME=kde QT_FORCE_STDERR_LOGGING=1 QT_LOGGING_RULES='org.example.ipc.debug=true'
log=/pictures/$name.log

click() {
    xdotool mousemove "$1" "$2" click 1
}

evaluate() {
    busctl --user call org.kde.plasmashell /PlasmaShell org.kde.PlasmaShell evaluateScript s "$1"
}

# The number of one more notification. Plasma counts them, and those of its own widgets do not go over the bus.
notified() {
    busctl --user call org.freedesktop.Notifications /org/freedesktop/Notifications org.freedesktop.Notifications \
        Notify 'susssasa{sv}i' test 0 '' Counted '' 0 0 1 | cut -d ' ' -f 2
}

# A process that ends with code 3 when its input does.
waiting() {
    mkfifo "$HOME/end"
    sh -c 'read -r line; exit 3' <"$HOME/end" &
    process=$!
    exec 4>"$HOME/end"
}

icons
screen
openbox >/dev/null 2>&1 &
install || fail "the widget cannot be installed"
plasmashell --no-respawn >"$log" 2>&1 &
until_true evaluate 'if (!desktops().length) throw 1'
evaluate "
    panels().forEach(panel => panel.remove());
    const panel = new Panel;
    panel.location = 'bottom';
    panel.height = 44;
    if ($version > 5)
        panel.floating = false;
    const widget = panel.addWidget('org.example.IPC');
    widget.currentConfigGroup = ['General'];
    widget.writeConfig('folders', '$HOME/Inbox');
    widget.reloadConfig();
    // What shows notifications.
    panel.addWidget('org.kde.plasma.notifications');
" || fail "no panel"
until_line "$log" 'ipc: service absent'
service
objects
until_line "$log" 'ipc: service present session'
until_line "$log" 'ipc: link left up .*10.77.0.1/24'
until_line "$log" "ipc: folder $HOME/Inbox watched"
# The popup, opened as a person does; nothing else in the panel is at its left.
sleep 2
xdotool mousemove 22 778
picture "$name-panel"
xdotool click 1
until_line "$log" 'ipc: relay /org/example/IPC/relay/[0-9]* running [1-9]'
until_line "$log" 'ipc: endpoint pipe:inode=[0-9]* 7 bytes'
ip link set right down
until_line "$log" 'ipc: event left: no carrier'
ip link set right up
until_line "$log" 'ipc: event left: up'
touch "$HOME/Inbox/report.pdf"
until_line "$log" 'ipc: event report.pdf is new in ~/Inbox'
picture "$name-popup"
xdotool mousemove 22 778 click 1

# The page of settings, from the menu of the widget.
xdotool mousemove 22 778 click 3
sleep 2
click $settings
until_true xdotool search --name 'IPC Settings'
picture "$name-settings"
xdotool search --name 'IPC Settings' windowclose
sleep 1

# On the desktop, where it is typed into. Devices are those of the whole machine: what happens to them would move lines.
lines=$(wc -l <"$log")
evaluate "
    const widget = desktops()[0].addWidget('org.example.IPC', 700, 40, 440, 660);
    widget.currentConfigGroup = ['General'];
    widget.writeConfig('feedDevices', false);
    widget.reloadConfig();
" || fail "no widget on the desktop"
# It is the only one that is open, and has all its lines when it knows the relay.
filled() {
    tail --lines=+$((lines + 1)) "$log" | grep --quiet 'ipc: relay .* running'
}
until_true filled
waiting
before=$(notified)
sleep 4
click $field
sleep 1
xdotool click 1
sleep 0.5
xdotool type "$process"
xdotool key Return
picture "$name-desktop"
until_line "$log" "ipc: process sh $process"
picture "$name-desktop"
exec 4>&-
until_line "$log" "ipc: event sh ($process): exit code 3"
picture "$name-notification"
[ "$(notified)" = $((before + 2)) ] || fail "there was no notification of it"

# The relay, paused and stopped with its buttons.
click $pause
until_line "$log" 'ipc: relay .* paused'
stopped() {
    ! busctl --user tree org.example.IPC | grep --quiet '/relay/[0-9]'
}
click $stop
until_true stopped

# One more folder.
mkdir "$HOME/Outbox"
picture "$name-folder"
click $folder
sleep 0.5
xdotool type '~/Outbox'
xdotool key Return
until_line "$log" "ipc: folder $HOME/Outbox watched"
touch "$HOME/Outbox/letter"
until_line "$log" 'ipc: event letter is new in ~/Outbox'
echo "PASSED"

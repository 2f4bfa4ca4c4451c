# Plasma 6 with the widget: in a panel, with its popup, on the desktop; what it knows is in its log.

. /ipc/next/common.sh
export XDG_CURRENT_DESKTOP=KDE KDE_FULL_SESSION=true KDE_SESSION_VERSION=6 QT_QPA_PLATFORM=xcb QT_QPA_PLATFORMTHEME=kde
export QT_FORCE_STDERR_LOGGING=1 QT_LOGGING_RULES='org.example.ipc.debug=true'
log=/pictures/plasma.log

evaluate() {
    busctl --user call org.kde.plasmashell /PlasmaShell org.kde.PlasmaShell evaluateScript s "$1"
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
kpackagetool6 -t Plasma/Applet -i /ipc/org.example.IPC.plasmoid || fail "kpackagetool6 does not take the widget"
service
objects
plasmashell --no-respawn >"$log" 2>&1 &
until_true evaluate 'if (!desktops().length) throw 1'
evaluate "
    panels().forEach(panel => panel.remove());
    const panel = new Panel;
    panel.location = 'bottom';
    panel.height = 44;
    panel.floating = false;
    const widget = panel.addWidget('org.example.IPC');
    widget.currentConfigGroup = ['General'];
    widget.writeConfig('folders', '$HOME/Inbox');
    widget.reloadConfig();
" || fail "no panel"
until_line "$log" 'ipc: service present session'
until_line "$log" 'ipc: link left up .*10.77.0.1/24'
until_line "$log" "ipc: folder $HOME/Inbox watched"
# The popup, opened as a person does; nothing else in the panel is at its left.
sleep 2
xdotool mousemove 22 778
picture plasma-panel
xdotool click 1
until_line "$log" 'ipc: relay /org/example/IPC/relay/[0-9]* running [1-9]'
until_line "$log" 'ipc: endpoint pipe:inode=[0-9]* 7 bytes'
ip link set right down
until_line "$log" 'ipc: event left: no carrier'
ip link set right up
until_line "$log" 'ipc: event left: up'
touch "$HOME/Inbox/report.pdf"
until_line "$log" 'ipc: event report.pdf is new in ~/Inbox'
picture plasma-popup
xdotool mousemove 22 778 click 1

# The page of settings, from the menu of the widget.
xdotool mousemove 22 778 click 3
sleep 2
xdotool mousemove 105 680 click 1
until_true xdotool search --name 'IPC Settings'
picture plasma-settings
xdotool search --name 'IPC Settings' windowclose
sleep 1

# On the desktop, where it is typed into.
evaluate "desktops()[0].addWidget('org.example.IPC', 700, 40, 440, 660)" || fail "no widget on the desktop"
waiting
sleep 4
xdotool mousemove 900 535 click 1
sleep 1
xdotool click 1
sleep 0.5
xdotool type "$process"
xdotool key Return
picture plasma-desktop
until_line "$log" "ipc: process sh $process"
picture plasma-desktop
exec 4>&-
until_line "$log" "ipc: event sh ($process): exit code 3"
picture plasma-notification

# The relay, paused and stopped with its buttons.
xdotool mousemove 1095 290 click 1
until_line "$log" 'ipc: relay .* paused'
stopped() {
    ! busctl --user tree org.example.IPC | grep --quiet '/relay/[0-9]'
}
xdotool mousemove 1125 290 click 1
until_true stopped
echo "PASSED"

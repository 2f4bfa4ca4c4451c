# Plasma 5.27 with the widget and its plugin, built as its users do.

. /ipc/next/common.sh
version=5
name=plasma5
settings='105 680'
field='900 541'
folder='900 456'
pause='1095 290'
stop='1125 290'

install() {
    kpackagetool5 -t Plasma/Applet -i /ipc/org.example.IPC-5.plasmoid &&
        cmake -S /ipc/desktop/plasma5/dbus -B "$HOME/build" && cmake --build "$HOME/build" && cmake --install "$HOME/build"
}

# Its qmllint knows no types, only what can be read.
mkdir "$HOME/widget"
python3 -m zipfile --extract /ipc/org.example.IPC-5.plasmoid "$HOME/widget"
qmllint "$HOME"/widget/contents/*/*.qml "$HOME"/widget/contents/ui/*.js || fail "qmllint"

. /ipc/next/plasma-steps.sh

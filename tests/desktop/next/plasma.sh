# Plasma 6 with the widget.

. /ipc/next/common.sh
version=6
name=plasma
settings='105 680'
field='900 535'
folder='900 450'
pause='1095 290'
stop='1125 290'

install() {
    kpackagetool6 -t Plasma/Applet -i /ipc/org.example.IPC.plasmoid
}

. /ipc/next/plasma-steps.sh

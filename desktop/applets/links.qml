// Prints the network interfaces, and each again when its state is another. This D-Bus module has no signals: it asks.
import QtQuick
import org.kde.plasma.workspace.dbus as DBus
Timer {
    property var bus: Qt.application.arguments.includes("session") ? DBus.SessionBus : DBus.SystemBus
    property var at: ({service: "org.example.IPC", path: "/org/example/IPC/netlink", iface: "org.example.IPC.Netlink"})
    property var known: ({})
    running: true; repeat: true; interval: 500
    onTriggered: {
        const reply = bus.asyncCall(Object.assign({member: "Links", signature: "()"}, at));
        reply.finished.connect(() => reply.values[1].forEach(([, name, state]) => {
            if (known[name] !== state.value) console.log(name.value, known[name] = state.value);
        }));
    }
}

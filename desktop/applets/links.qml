// Prints the network interfaces, and each again when its state is another.
import QtQuick
import org.kde.plasma.workspace.dbus as DBus
Timer {
    property var seq
    readonly property var bus: Qt.application.arguments.includes("session") ? DBus.SessionBus : DBus.SystemBus
    readonly property var node: ({service: "org.example.IPC", path: "/org/example/IPC/netlink", iface: "org.example.IPC.Netlink"})
    function call(member, signature, ...given) {
        return new Promise((resolve, reject) => bus.asyncCall({...node, member, signature, arguments: given}, resolve, reject));
    }
    Component.onCompleted: call("Links", "()").then(r => console.log("RAW", JSON.stringify(r), JSON.stringify(r.values)))
    interval: 500
    repeat: true
}

// Prints the network interfaces, and each again when its state is another, with no signals, which QML does not hear.
import QtQuick
import org.kde.plasma.workspace.dbus as DBus
QtObject {
    property var bus: Qt.application.arguments.includes("session") ? DBus.SessionBus : DBus.SystemBus
    property var at: ({service: "org.example.IPC", path: "/org/example/IPC/netlink", iface: "org.example.IPC.Netlink"})
    property var known: ({})
    function call(member, signature, given, then) {
        const reply = bus.asyncCall(Object.assign({member, signature, arguments: given}, at));
        reply.finished.connect(() => then(...reply.values)); }
    function list() { call("Links", "()", [], (seq, links) => {
        for (const [, name, state] of links)
            if (known[name] !== state.value) console.log(name.value, known[name] = state.value);
        call("WaitSince", "(tu)", [seq, 20000], list); }); } // Until something happens, or 20 s.
    Component.onCompleted: list() }

// One bus: whether it has the service, and whether it could start it.

import QtQuick
import org.kde.plasma.workspace.dbus as DBus

QtObject {
    id: bus

    required property string kind
    required property int type
    required property var connection
    required property string name

    readonly property bool owned: watcher.registered
    property bool activatable: false
    property bool known: false

    signal changed

    /** Errors that the bus makes when whoever was asked has gone; it is seen by then, or soon. */
    readonly property list<string> unanswered: ["Disconnected", "NameHasNoOwner", "NoReply", "ServiceUnknown"]

    readonly property DBus.DBusServiceWatcher watcher: DBus.DBusServiceWatcher {
        busType: bus.type
        watchedService: bus.name
    }

    // Not when `registered` changes, which this may follow later.
    onOwnedChanged: changed()

    Component.onCompleted: look()

    /** What is asked of a bus that is not there is never answered. */
    readonly property Timer patience: Timer {
        interval: 2000
        running: true
        onTriggered: bus.told()
    }

    function told() {
        known = true;
        changed();
    }

    function look() {
        // Later than what the watcher has asked: the bus answers in order.
        askBus("ListActivatableNames", "", [], names => {
            activatable = names.includes(name);
            told();
        }, told);
    }

    function start(refused) {
        askBus("StartServiceByName", "su", [name, 0], () => {}, refused);
    }

    function askBus(member, signature, given, answer, refused) {
        const path = "/org/freedesktop/DBus";
        const iface = "org.freedesktop.DBus";
        ask({service: iface, path, iface, member, signature: `(${signature})`, arguments: given},
            values => answer(...values), refused);
    }

    /** A call: `answer` gets an array of plain values. */
    function ask(message, answer, refused) {
        const reply = connection.asyncCall(message);;
        reply.finished.connect(() => {
            if (reply.isError) {
                const parts = reply.error.name.split(".");
                const name = parts[parts.length - 1];
                refused({name, message: reply.error.message, answered: !unanswered.includes(name)});
            } else {
                answer(plain(reply.values));
            }
            reply.destroy();
        });
    }

    /** Values come wrapped, so that QML does not forget which of D-Bus' numbers they were. */
    function plain(it) {
        if (it === null || typeof it !== "object")
            return it;
        if (it.length !== undefined)
            return Array.from(it, plain);
        const keys = Object.keys(it);
        if (keys.length === 1 && keys[0] === "value") {
            // What is in an object path or a signature is none of QML's values; it is its text.
            return typeof it.value === "object" ? it.toString() : it.value;
        }
        const all = {};
        keys.forEach(key => all[key] = plain(it[key]));
        return all;
    }
}

// The service, on whichever bus has it: the system bus if the name is there or can be started there, else the session
// bus. `present` and `left` tell when it comes and goes. Every call is asynchronous; what was asked of a service that
// has gone meanwhile is not answered any more.
//
// Plasma 6.3 knows D-Bus calls in QML, and no signals. So everything here is asked for, and what has to be told at
// once is a call that the service answers late: see Network.qml, Folders.qml and Processes.qml.

import QtQuick
import org.kde.plasma.workspace.dbus as DBus

QtObject {
    id: service

    readonly property string name: "org.example.IPC"

    /** searching, absent (neither bus has it or can start it), stopped, starting or present */
    property string presence: "searching"
    property string kind: ""
    property string failure: ""

    property bool started: false
    /** Counts the services that were met: an answer of an earlier one is nobody's business. */
    property int life: 0

    signal arrived
    signal left

    readonly property list<QtObject> both: [
        Bus {
            kind: "system"
            type: DBus.BusType.System
            connection: DBus.SystemBus
            name: service.name
            onChanged: service.choose()
        },
        Bus {
            kind: "session"
            type: DBus.BusType.Session
            connection: DBus.SessionBus
            name: service.name
            onChanged: service.choose()
        }
    ]

    /** In Qt 5, which the widget for Plasma 5.27 is made for of these sources, a list is no array. */
    readonly property var buses: Array.from(both)

    /** Calls a method: `answer` gets what it returns as plain values, `refused` {name, message, answered}. */
    function call(path, iface, member, signature, given, answer, refused) {
        const life = service.life;
        const bus = chosen();
        if (service.presence !== "present" || !bus)
            return;
        const full = !iface ? service.name : iface.includes(".") ? iface : `${service.name}.${iface}`;
        const message = {
            service: service.name,
            path,
            iface: full,
            member,
            signature: `(${signature})`,
            arguments: given,
        };
        bus.ask(message, values => {
            if (answer && life === service.life)
                answer(...values);
        }, error => {
            if (life !== service.life)
                return;
            if (refused)
                refused(error);
            else if (!["UnknownObject", "NoSuchEndpoint"].includes(error.name))
                console.warn(`${service.name}: ${member} of ${path}: ${error.message}`);
        });
    }

    /** Asks the buses again what they can start: it may have been installed meanwhile. */
    function lookAgain() {
        if (presence !== "present")
            buses.forEach(bus => bus.look());
    }

    /** Has the bus start the service. */
    function start() {
        const bus = chosen();
        if (!bus || bus.owned || presence === "starting")
            return;
        started = true;
        failure = "";
        presence = "starting";
        bus.start(error => {
            failure = error.message;
            if (presence === "starting")
                presence = "stopped";
        });
    }

    function chosen() {
        return buses.find(bus => bus.owned || bus.activatable) ?? null;
    }

    function choose() {
        // Not before both have said what they have: the first to answer is not always the one to use.
        if (buses.some(bus => !bus.known))
            return;
        const bus = chosen();
        if (presence === "present" && bus && bus.owned && bus.kind === kind)
            return;
        if (presence === "present") {
            life += 1;
            presence = "searching";
            left();
        }
        kind = bus ? bus.kind : "";
        if (bus && bus.owned) {
            started = true;
            presence = "present";
            arrived();
        } else if (bus && !started) {
            start();
        } else if (presence !== "starting" || !bus) {
            // Somebody has stopped it, or it broke: whether it is to run is not decided here.
            presence = bus ? "stopped" : "absent";
        }
    }
}

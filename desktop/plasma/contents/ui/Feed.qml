// What happened lately: a line for each event, the newest first. What happens again and again is one line that says how
// often, so that a device that flaps does not push everything else away.

import QtQuick
import "text.js" as Text

QtObject {
    id: feed

    required property bool networkWanted
    required property bool devicesWanted
    required property string home

    property var lines: []
    /** How many lines are kept. */
    readonly property int kept: 50

    signal added(string text)

    function add(icon, text) {
        const same = lines.find(line => line.text === text);
        const line = {icon, text, time: Date.now(), count: (same ? same.count : 0) + 1};
        lines = [line, ...lines.filter(line => line !== same)].slice(0, kept);
        added(text);
    }

    function happened(what, it) {
        // Link-local addresses come and go with each change of the interface's state.
        if (what === "device")
            device(it);
        else if (networkWanted && it.name !== "lo" && !(it.address ?? "").startsWith("fe80:"))
            network(what, it);
    }

    function network(what, it) {
        const of = text => add("network-wired", text);
        switch (what) {
        case "link-removed":
            of(i18n("%1 has gone", it.name));
            break;
        case "address":
            of(i18n("%1 has the address %2", it.name, it.address));
            break;
        case "address-removed":
            of(i18n("%1 has lost the address %2", it.name, it.address));
            break;
        case "link":
            if (it.isNew)
                of(i18n("%1 is new", it.name));
            else if (it.was !== undefined)
                of(i18nc("interface: state", "%1: %2", it.name, Text.linkState(it.state)));
        }
    }

    function device({action, devpath, subsystem}) {
        // The queues of an interface and the bookkeeping of a mount come and go with it.
        if (!devicesWanted || ["queues", "bdi"].includes(subsystem))
            return;
        const name = devpath.slice(devpath.lastIndexOf("/") + 1);
        const texts = {
            add: i18n("Device %1 was added (%2)", name, subsystem),
            remove: i18n("Device %1 was removed (%2)", name, subsystem),
            change: i18n("Device %1 has changed (%2)", name, subsystem),
        };
        if (texts[action])
            add("drive-removable-media", texts[action]);
    }

    /** The line of a change in a watched folder; "" for what nobody needs to know. */
    function folder(events, path, from) {
        const text = Text.folderChange(events, path, from, home);
        if (text)
            add("folder", text);
        return text;
    }

    function process(name, status) {
        add("application-x-executable", i18nc("process: how it ended", "%1: %2", name, status));
    }
}

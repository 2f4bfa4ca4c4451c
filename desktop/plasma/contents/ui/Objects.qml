// The endpoints and relays that the service holds for this user: how much waits in them, how fast data moves. They are
// asked for in one call a second, while somebody looks, and never otherwise.

import QtQuick

QtObject {
    id: objects

    required property Service service
    /** Whether somebody looks. */
    required property bool open

    property var relays: []
    property var endpoints: []
    property bool asked: false

    /** How many values a line remembers. */
    readonly property int remembered: 40

    function stop() {
        relays = [];
        endpoints = [];
        asked = false;
    }

    function pause(relay) {
        change(relay, relay.state === "paused" ? "Resume" : "Pause");
    }

    function halt(relay) {
        change(relay, "Stop");
    }

    function change(relay, method) {
        service.call(relay.path, "Relay", method, "", [], () => ask());
    }

    readonly property Timer timer: Timer {
        interval: 1000
        repeat: true
        running: objects.open && objects.service.presence === "present"
        triggeredOnStart: true
        onTriggered: objects.ask()
    }

    function ask() {
        // One question at a time: a service that is slow is not asked more often for it.
        if (asked)
            return;
        asked = true;
        service.call("/org/example/IPC", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "", [], all => {
            asked = false;
            take(all);
        }, error => {
            asked = false;
            console.warn(`org.example.IPC: GetManagedObjects: ${error.message}`);
        });
    }

    function take(all) {
        const part = (path, name) => (all[path] ?? {})[`org.example.IPC.${name}`] ?? {};
        const address = path => part(path, "Endpoint").Address ?? path;
        const before = new Map([...relays, ...endpoints].map(it => [it.path, it.history]));
        const remember = (path, value) => [...before.get(path) ?? [], value].slice(-remembered);
        const freshRelays = [], freshEndpoints = [];
        for (const [path, interfaces] of Object.entries(all)) {
            const relay = interfaces["org.example.IPC.Relay"];
            const endpoint = interfaces["org.example.IPC.Endpoint"];
            if (relay) {
                freshRelays.push({
                    path,
                    source: address(relay.Source),
                    sink: address(relay.Sink),
                    state: relay.State,
                    rate: relay.Rate,
                    history: remember(path, relay.Rate),
                });
            } else if (endpoint) {
                const stream = interfaces["org.example.IPC.Stream"];
                const depth = (stream ?? part(path, "Messages")).Depth ?? null;
                freshEndpoints.push({
                    path,
                    address: endpoint.Address,
                    createdAt: endpoint.CreatedAt,
                    depth,
                    bytes: stream !== undefined,
                    history: depth === null ? [] : remember(path, depth),
                });
            }
        }
        const number = path => Number(path.slice(path.lastIndexOf("/") + 1));
        relays = freshRelays.sort((one, other) => number(one.path) - number(other.path));
        // The newest first: it is what somebody has just made.
        endpoints = freshEndpoints.sort((one, other) => other.createdAt - one.createdAt);
    }
}

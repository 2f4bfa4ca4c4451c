// The network interfaces with their addresses, and the devices that come and go: lists with the number of the last
// event that is in them, and what happened since, which the service tells with the answer to a call when it happens.

import QtQuick

QtObject {
    id: network

    required property Service service

    /** The interfaces, each with its addresses, in the order of their numbers. */
    property var links: []

    property var table: new Map()
    property var addresses: new Map()
    property double seq: -1
    property bool asked: false

    readonly property string node: "/org/example/IPC/netlink"
    /** Less than what QtDBus waits for an answer, 25 s. */
    readonly property int patience: 20000

    /** what: link, link-removed, address, address-removed or device */
    signal happened(string what, var it)

    function start() {
        refresh();
    }

    function stop() {
        pause.stop();
        table = new Map();
        addresses = new Map();
        links = [];
        seq = -1;
        asked = false;
    }

    /** New lists, whatever was missed. */
    function refresh() {
        service.call(node, "Netlink", "Links", "", [], (seq, links) => {
            const table = new Map(links.map(([index, name, state, details]) =>
                [index, link(index, name, state, details)]));
            service.call(node, "Netlink", "Addresses", "", [], (_seq, addresses) => {
                network.table = table;
                network.addresses = new Map(addresses.map(([index, , address, prefix]) =>
                    [key(index, address, prefix), {index, address, prefix}]));
                // Later ones have in them what is waited for, and telling that again changes nothing.
                if (network.seq < 0)
                    network.seq = seq;
                show();
                wait();
            }, again);
        }, again);
    }

    function wait() {
        if (seq < 0 || asked)
            return;
        asked = true;
        service.call(node, "Netlink", "WaitSince", "tu", [seq, patience], (events, lost) => {
            asked = false;
            for (const [number, , name, told] of events) {
                seq = number;
                apply(name, told);
            }
            show();
            if (lost > 0)
                refresh();
            // The kernel tells one thing in several messages; and what is told of processes may be very much.
            pause.interval = events.some(([, , name]) => /^(Link|Address|Device)/.test(name)) ? 50 : 1000;
            pause.restart();
        }, error => {
            asked = false;
            if (error.name === "Timeout")
                wait();
            else
                again(error);
        });
    }

    /** As when the process that tells everybody was started anew. */
    function again(error) {
        console.warn(`org.example.IPC: network: ${error.message}`);
        pause.interval = 2000;
        pause.restart();
    }

    readonly property Timer pause: Timer {
        onTriggered: network.seq < 0 ? network.refresh() : network.wait()
    }

    function apply(event, told) {
        const [index, name] = told;
        switch (event) {
        case "LinkChanged": {
            const it = link(index, name, told[2], told[3]);
            const was = told[3]["old-state"];
            const isNew = !table.has(index);
            table.set(index, it);
            happened("link", Object.assign({was, isNew}, it));
            break;
        }
        case "LinkRemoved":
            table.delete(index);
            happened("link-removed", {name});
            break;
        case "AddressAdded": {
            const place = key(index, told[2], told[3]);
            if (!addresses.has(place))
                happened("address", {name, address: told[2]});
            addresses.set(place, {index, address: told[2], prefix: told[3]});
            break;
        }
        case "AddressRemoved":
            if (addresses.delete(key(index, told[2], told[3])))
                happened("address-removed", {name, address: told[2]});
            break;
        case "DeviceEvent":
            // udevd tells the same again.
            if (told[3] === "kernel")
                happened("device", {action: told[0], devpath: told[1], subsystem: told[2]});
        }
    }

    function show() {
        const all = [...addresses.values()];
        links = [...table.values()].sort((one, other) => one.index - other.index).map(link => Object.assign({
            addresses: all.filter(it => it.index === link.index).map(it => `${it.address}/${it.prefix}`),
        }, link));
    }

    function link(index, name, state, details) {
        return {index, name, state, loopback: details.flags ? details.flags.includes("loopback") : name === "lo"};
    }

    function key(index, address, prefix) {
        return `${index} ${address}/${prefix}`;
    }
}

// The folders that are watched: one endpoint of the service for each path in the configuration, made anew when the
// service was away. Of each, what changes is waited for with a call that the service answers when there is something.

import QtQuick

QtObject {
    id: folders

    required property Service service
    /** The paths. */
    required property list<string> wanted

    /** path, object and error of each that is watched. */
    property var watches: []

    /** What a watched file is called by the kernel, its path and where it was before. */
    signal happened(var events, string path, string from)

    readonly property var objects: watches.map(it => it.object).filter(object => object)

    /** Less than what QtDBus waits for an answer, 25 s. */
    readonly property int patience: 20000
    /** How many are waited for at once: of one connection, which is that of the whole shell, the service takes 16 calls
        at a time. The others are asked every second. */
    readonly property int most: 8

    onWantedChanged: sync()
    onObjectsChanged: askAll()

    function start() {
        watches = [];
        sync();
    }

    function stop() {
        watches = [];
    }

    function close() {
        watches.forEach(end);
        watches = [];
    }

    /** Watches what the configuration says, and nothing else. */
    function sync() {
        if (service.presence !== "present")
            return;
        watches.filter(it => !wanted.includes(it.path)).forEach(end);
        const kept = watches.filter(it => wanted.includes(it.path));
        const fresh = wanted.filter(path => !kept.some(it => it.path === path));
        watches = [...kept, ...fresh.map(path => ({path, object: "", seq: 0, error: "", asked: false, waits: false}))];
        watches.filter(it => fresh.includes(it.path)).forEach(begin);
    }

    function begin(watch) {
        // A file that is written makes several events; they are told as one when it has been quiet for a moment.
        create(watch, {"debounce-ms": 200}, error => {
            if (error.name !== "NotSupported") {
                broken(watch, error.message);
                return;
            }
            // As on network file systems, where the kernel does not tell of all changes.
            create(watch, {"poll-ms": 2000}, error => broken(watch, error.message));
        });
    }

    function create(watch, options, refused) {
        const keys = Object.entries(options).map(([key, value]) => `${key}=${value}`).join(",");
        const events = "create+delete+move+close-write";
        const address = `inotify:path=${quoted(watch.path)},events=${events},lifetime=client,${keys}`;
        service.call("/org/example/IPC", "", "Create", "sa{sv}", [address, {}], object => {
            watch.object = object;
            if (watches.includes(watch))
                watchesChanged();
            else
                end(watch);
        }, refused);
    }

    /** As addresses have values that may hold anything. */
    function quoted(text) {
        return encodeURIComponent(text).replace(/%2F/g, "/");
    }

    function broken(watch, why) {
        watch.error = why;
        watch.object = "";
        watchesChanged();
    }

    function end(watch) {
        if (watch.object)
            service.call(watch.object, "Endpoint", "Close", "", []);
    }

    function askAll() {
        watches.filter(it => it.object && !it.asked).forEach(ask);
    }

    function ask(watch) {
        watch.asked = true;
        watch.waits = watches.filter(it => it.waits).length < most;
        const timeout = watch.waits ? patience : 0;
        service.call(watch.object, "Watch", "WaitSince", "tu", [watch.seq, timeout], events => {
            for (const [seq, , names, path, from] of events) {
                watch.seq = seq;
                if (names.includes("IGNORED"))
                    broken(watch, names.join(" "));
                else
                    happened(names, path, from);
            }
            goOn(watch);
        }, error => {
            if (error.name === "Timeout") {
                goOn(watch);
            } else if (["Closed", "Gone", "NoSuchEndpoint", "UnknownObject"].includes(error.name)) {
                // The endpoint has gone, as when the user's worker on the system bus has: it is made anew.
                Object.assign(watch, {object: "", seq: 0, asked: false, waits: false});
                if (watches.includes(watch))
                    begin(watch);
            } else if (error.answered && !["Busy", "LimitExceeded"].includes(error.name)) {
                end(watch);
                broken(watch, error.message);
            } else {
                watch.waits = false;
                goOn(watch);
            }
        });
    }

    /** Waits again; who may not wait is asked a little later. */
    function goOn(watch) {
        const waited = watch.waits;
        watch.asked = watch.waits = false;
        if (!waited)
            pause.start();
        else if (watch.object && watches.includes(watch))
            ask(watch);
    }

    readonly property Timer pause: Timer {
        interval: 1000
        onTriggered: folders.askAll()
    }
}

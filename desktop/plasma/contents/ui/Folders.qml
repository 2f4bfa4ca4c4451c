// The folders that are watched: one endpoint of the service for each path in the configuration, made anew when the
// service was away. What has changed is asked for every second, and only while a folder is watched.

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

    onWantedChanged: sync()

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
        watches = [...kept, ...fresh.map(path => ({path, object: "", seq: 0, error: ""}))];
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

    readonly property Timer timer: Timer {
        interval: 1000
        repeat: true
        running: folders.objects.length > 0
        onTriggered: folders.watches.filter(it => it.object).forEach(folders.ask)
    }

    function ask(watch) {
        service.call(watch.object, "Watch", "Since", "t", [watch.seq], events => {
            for (const [seq, , names, path, from] of events) {
                if (seq <= watch.seq)
                    continue;
                watch.seq = seq;
                if (names.includes("IGNORED"))
                    broken(watch, names.join(" "));
                else
                    happened(names, path, from);
            }
        }, error => {
            // The endpoint has gone, as when the user's worker on the system bus has: it is made anew.
            watch.object = "";
            if (error.answered)
                begin(watch);
        });
    }
}

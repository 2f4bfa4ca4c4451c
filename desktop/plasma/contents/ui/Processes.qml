// The processes whose end is to be told, with the exit code. The service holds each as a pidfd, and its address names
// that very process: after a restart of the service, another process with the same number is not mistaken for it.
// Its end is waited for with a call that the service answers when it has come.

import QtQuick

QtObject {
    id: processes

    required property Service service

    /** name, pid, address and object of each. */
    property var watched: []

    readonly property var objects: watched.map(it => it.object)

    signal ended(string name, int code, int signal)

    /** Those that were waited for before, when the service is there again. */
    function start() {
        watched.forEach(again);
    }

    function again(it) {
        attach(it.address, object => {
            it.object = object;
            watchedChanged();
            wait(it);
        }, error => {
            if (error.name === "NotFound")
                end(it, -1, 0);
        });
    }

    function close() {
        watched.forEach(it => service.call(it.object, "Endpoint", "Close", "", []));
        watched = [];
    }

    /** Begins: `text` is a number or the exact name of a command. `refused` is told what is wrong. */
    function watch(text, refused) {
        const key = /^\d+$/.test(text) ? "pid" : "command";
        attach(`signal:${key}=${encodeURIComponent(text)}`, object => {
            const properties = (iface, answer) => service.call(
                object, "org.freedesktop.DBus.Properties", "GetAll", "s", [`org.example.IPC.${iface}`], answer);
            properties("Process", process => properties("Endpoint", endpoint => add({
                object,
                name: process.Command,
                pid: process.Pid,
                address: endpoint.Address,
            })));
        }, error => refused(error.message));
    }

    /** Ends it without a word. */
    function forget(it) {
        watched = watched.filter(other => other !== it);
        service.call(it.object, "Endpoint", "Close", "", []);
    }

    function attach(address, made, refused) {
        service.call("/org/example/IPC", "", "Attach", "sa{sv}", [`${address},lifetime=client`, {}], made, refused);
    }

    function add(it) {
        if (watched.some(other => other.address === it.address)) {
            service.call(it.object, "Endpoint", "Close", "", []);
            return;
        }
        watched = [...watched, it];
        wait(it);
    }

    function wait(it) {
        // Less than what QtDBus waits for an answer, 25 s.
        service.call(it.object, "Process", "WaitExit", "u", [20000], (code, signal) => end(it, code, signal), error => {
            if (!watched.includes(it))
                return;
            if (error.name === "Timeout")
                wait(it);
            else if (error.answered)
                // The endpoint has gone, as when the user's worker on the system bus has; the process has not.
                again(it);
        });
    }

    function end(it, code, signal) {
        if (!watched.includes(it))
            return;
        forget(it);
        ended(`${it.name} (${it.pid})`, code, signal);
    }
}
